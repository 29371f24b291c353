// What a build without cuDNN links in the place of cuda_cudnn.cpp: no plan for any attention.
#include "core/base/error.h"
#include "core/device/cuda_cudnn.h"

namespace castor {

class CudnnAttention {};

bool has_cudnn() { return false; }

const CudnnAttention* find_cudnn_attention(Device, const CudnnAttentionProblem&, std::size_t, std::string* why) {
  if (why != nullptr) *why = "this build has no cuDNN; configure it with -Dcudnn=enabled";
  return nullptr;
}

std::size_t cudnn_attention_workspace(const CudnnAttention&) { return 0; }

std::string cudnn_attention_name(const CudnnAttention&) { return {}; }

void run_cudnn_attention(const Cuda&, const CudnnAttention&, const CudnnAttentionOperands&, float, void*) {
  throw InternalError("attention: a plan of cuDNN's in a build without it");
}

std::string cudnn_version() { return {}; }

}  // namespace castor
