// Marks functions that both the C++ compiler and nvcc read, so that pointwise maths and number formats are written
// once. This is the only file with a preprocessor conditional.
#pragma once

#ifdef __CUDACC__
#define CASTOR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CASTOR_HOST_DEVICE inline __attribute__((always_inline))
#endif
