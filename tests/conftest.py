import os

# The tests run in two processes on two cores, on tensors so small that a second thread only waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
