// Between attention's contract and the library's wrapper (core/device/cuda_cudnn.h): which operands go there.
#pragma once

#include <cstddef>
#include <string>

#include "core/ops/attention.h"

namespace castor::cuda {

/// Whether cuDNN is to do this: asked for or faster, built in, and present. Depends on shapes, strides and the device,
/// not on addresses. On a meta device it is taken to be present and to take every shape of the table.
bool cudnn_does(const Cuda& cuda, const AttentionArgs& args);

/// Workspace that its plans may have.
std::size_t cudnn_workspace();

/// Precondition: cudnn_does, and addresses that are multiples of 16 bytes.
void attention_cudnn(const Cuda& cuda, const AttentionArgs& args);

/// The plan for operands that cuDNN could take, "engine 2, knobs 24=3, workspace 256", or why there is none.
std::string cudnn_plan_text(Device device, const AttentionArgs& args);

}  // namespace castor::cuda
