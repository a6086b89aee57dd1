"""Offline training and measurement of FreqMerge models on CIFAR-100, or on one's own pictures."""
