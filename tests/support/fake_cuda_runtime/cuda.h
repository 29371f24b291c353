// The part of CUDA's driver that dist/comm_cuda_peers.cpp asks for; see cuda_runtime_api.h beside it.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

enum CUresult { CUDA_SUCCESS = 0 };
using CUstream = cudaStream_t;
using CUdeviceptr = unsigned long long;
using cuuint32_t = std::uint32_t;
inline constexpr unsigned CU_STREAM_WAIT_VALUE_GEQ = 0, CU_STREAM_WRITE_VALUE_DEFAULT = 0;
