// seconds_since: how long something has taken, for progress, logs and measurements.
#pragma once

#include <chrono>

namespace castor {

/// Seconds that have passed since `start`.
inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace castor
