// How the measuring programs time work on the GPU: the median over several runs between two events, each run several
// calls long, so that neither the first calls nor the host's own time counts.
#pragma once

#include <functional>

#include "core/device/device.h"

namespace castor::test {

inline constexpr Device kTimedGpu{DeviceType::cuda, 0};

/// How long is measured: `runs` times `calls`, after some runs that do not count.
struct Repeats {
  int runs = 9;
  int calls = 8;
  int warm_ups = 3;
};

/// Milliseconds of one call of `work`, which launches on the GPU's stream.
double median_ms(const std::function<void()>& work, Repeats repeats = {});

/// The GPU's name, as CUDA gives it.
const char* gpu_name();

}  // namespace castor::test
