"""The data of a run: CIFAR-100 or folders of pictures, in memory, augmented in batches."""
