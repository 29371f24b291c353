// What a device's queue waited for: the time of a stretch of a trace in which it computed nothing, by what was on its
// way meanwhile. This is what overlapping has left of exchanges, copies and the host's steps.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/device/trace.h"

namespace castor {

/// Seconds. Where several things were on their way, the first of these has the time.
struct IdleTime {
  double stretch = 0;   ///< the whole of it, computing included
  double exchange = 0;  ///< collectives
  double host = 0;      ///< ops on the host's tier: steps of offloaded states
  double copies = 0;    ///< between the device and the host
  double other = 0;     ///< nothing that is known: launching, reading a loss, preparing a batch

  double total() const { return exchange + host + copies + other; }
};

/// "347.2 of 508.4 ms (exchange 0.1, host 309.3, copies 30.9, other 6.9)".
std::string idle_text(const IdleTime& idle);

/// Of the first span called `stretch`. Nothing where there is none.
///   spans  of one trace of a run on `device`
IdleTime idle_time(std::span<const Trace::TimedSpan> spans, Device device, std::string_view stretch);

}  // namespace castor
