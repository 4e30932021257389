// The CUDA runtime that libaigc_ops_cuda is linked with, which tells what driver it needs: aigc_ext/_native.py asks.
#include <cuda_runtime_api.h>

extern "C" __attribute__((visibility("default"))) int aigc_cuda_runtime_version() { return CUDART_VERSION; }
