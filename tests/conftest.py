import hypothesis
import torch

# Tiny tensors: a second thread only waits, and starves the server processes that some tests start.
torch.set_num_threads(1)

# A busy machine is not a failure, and a failure can be repeated.
hypothesis.settings.register_profile("freqmerge", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("freqmerge")
