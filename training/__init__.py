"""Offline training and measurement of FreqMerge models on CIFAR-100."""
