// Between attention's contract and the library's wrapper (core/device/cuda_cudnn.h): which operands go there.
#pragma once

#include <cstddef>
#include <string>

#include "core/ops/attention.h"

namespace castor::cuda {

/// Whether cuDNN is to do this: asked for or faster, built in, and present. Depends on shapes, strides and the device,
/// not on addresses. On a meta device it is taken to be present and to take every shape of the table.
bool cudnn_does(const Cuda& cuda, const AttentionArgs& args);
bool cudnn_does(const Cuda& cuda, const AttentionBackwardArgs& args);

/// Workspace that its plans may have: a function of the sizes.
std::size_t cudnn_workspace(const AttentionArgs& args);
std::size_t cudnn_workspace(const AttentionBackwardArgs& args);

/// Precondition: cudnn_does, and addresses that are multiples of 16 bytes.
void attention_cudnn(const Cuda& cuda, const AttentionArgs& args);
void attention_cudnn(const Cuda& cuda, const AttentionBackwardArgs& args);

/// The plan for operands that cuDNN could take, "engine 2, knobs 24=3, workspace 256", or why there is none.
std::string cudnn_plan_text(Device device, const AttentionArgs& args);
std::string cudnn_plan_text(Device device, const AttentionBackwardArgs& args);

}  // namespace castor::cuda
