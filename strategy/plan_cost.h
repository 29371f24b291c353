// What a step costs in time on a kind of machine, from what a plan counted: enough to say which of several ways of
// fitting a model is the cheapest, and about how long a step takes.
//
// Delicate: an estimate and not a measurement. Each part of a step is taken at the rate that the machine keeps up, and
// parts are added, as if none but the host's and the link's happened beside another; so moves that hide behind
// computing are overrated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/device/device.h"
#include "strategy/plan.h"

namespace castor::strategy {

/// A device with what is around it. Rates are makers' peaks in bytes or FLOPs a second, links' one way.
struct Machine {
  std::string_view name;
  DeviceType type = DeviceType::cpu;  ///< whose kernels run: workspaces differ
  std::int64_t memory_gib = 0;        ///< of the device; 0: not known
  std::int64_t host_gib = 0;          ///< of the host's memory, for each device; 0: not known
  double half_flops = 0;              ///< products of 16-bit numbers
  double float_flops = 0;             ///< products of f32
  double memory_bytes = 0;            ///< between the device and its memory
  int node_devices = 1;               ///< in one host
  double node_bytes = 0;              ///< to other devices of the host
  double network_bytes = 0;           ///< to other hosts, for each device
  double link_bytes = 0;              ///< between device and host
  double host_bytes = 0;              ///< between the host's processors and its memory, for each device
  double disk_bytes = 0;              ///< read or written, for each device
};

/// "h100", "h200", "a100": NVIDIA's DGX systems, whose data sheets are the source; and "cpu".
const std::vector<Machine>& machines();
/// The one of this name. Throws ConfigError, listing the names, for another.
const Machine& machine_named(std::string_view name);

/// Seconds of a global step.
struct StepEstimate {
  double compute = 0;   ///< the device's ops
  double exchange = 0;  ///< with other ranks
  double link = 0;      ///< between device and host
  double host = 0;      ///< ops that run on the host: its share of offloaded states' steps
  double disk = 0;
  /// Host and GPU share the steps of offloaded states, so host and link work at a time; all else adds up.
  double total() const { return compute + exchange + std::max(link, host) + disk; }
};

/// What the plan's step would take on a machine.
StepEstimate estimate_step(const Plan& plan, const Machine& machine);
/// In one line: "about 0.31 s a step on h100: compute 0.25 s, exchange 0.06 s (estimated, as if nothing overlapped)".
std::string estimate_text(const StepEstimate& estimate, const Machine& machine);
/// Seconds by part, with "total" and "machine".
nlohmann::ordered_json estimate_json(const StepEstimate& estimate, const Machine& machine);

}  // namespace castor::strategy
