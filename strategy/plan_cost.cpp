// Machines and their rates. Sources of the table: NVIDIA's data sheets of H100 SXM, H200 SXM and A100 80GB SXM (dense
// rates), and of DGX H100 and DGX A100 for hosts, networks and disks, divided by their eight devices; "cpu" is two
// cores of a server, measured by tests/bench.
#include "strategy/plan_cost.h"

#include <algorithm>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/error.h"

namespace castor::strategy {
namespace {

// Shares of the peaks that long runs of kernels and copies keep up.
constexpr double kProductShare = 0.66;
constexpr double kAttentionShare = 0.24;  // on GPUs: causal, heads of 64
constexpr double kMoveShare = 0.8;

std::string seconds_text(double seconds) {
  std::ostringstream out;
  out << std::setprecision(3);
  if (seconds >= 1) {
    out << seconds << " s";
  } else if (seconds >= 1e-3) {
    out << seconds * 1e3 << " ms";
  } else {
    out << seconds * 1e6 << " us";
  }
  return out.str();
}

template <class F>
void for_each_part(const StepEstimate& estimate, F&& f) {
  f("compute", estimate.compute);
  f("exchange", estimate.exchange);
  f("link", estimate.link);
  f("host", estimate.host);
  f("disk", estimate.disk);
}

}  // namespace

const std::vector<Machine>& machines() {
  static const std::vector<Machine> all = {
      {"h100", DeviceType::cuda, 80, 256, 989e12, 67e12, 3.35e12, 8, 450e9, 50e9, 64e9, 77e9, 6e9},
      {"h200", DeviceType::cuda, 141, 256, 989e12, 67e12, 4.8e12, 8, 450e9, 50e9, 64e9, 77e9, 6e9},
      {"a100", DeviceType::cuda, 80, 256, 312e12, 19.5e12, 2.04e12, 8, 300e9, 25e9, 32e9, 51e9, 3e9},
      {"cpu", DeviceType::cpu, 0, 0, 0.4e12, 0.4e12, 26e9, 1, 5e9, 1e9, 10e9, 26e9, 2e9}};
  return all;
}

const Machine& machine_named(std::string_view name) {
  std::string names;
  for (const Machine& machine : machines()) {
    if (machine.name == name) return machine;
    names += cat(names.empty() ? "" : ", ", machine.name);
  }
  throw ConfigError(cat("no machine \"", name, "\" is known; there are: ", names), "--target");
}

StepEstimate estimate_step(const Plan& plan, const Machine& machine) {
  StepEstimate estimate;
  const double peak = dtype_size(plan.compute_dtype) < 4 ? machine.half_flops : machine.float_flops;
  for (const OpTotal& op : plan.ops) {
    const bool is_attention = machine.type == DeviceType::cuda && op.name.starts_with("attention");
    const double share = is_attention ? kAttentionShare : kProductShare;
    estimate.compute += std::max((op.flops - op.host_flops) / (share * peak),
                                 (op.bytes - op.host_bytes) / (kMoveShare * machine.memory_bytes));
    estimate.host += op.host_bytes / (kMoveShare * machine.host_bytes);
  }
  const double exchange_rate = plan.world_size > machine.node_devices ? machine.network_bytes : machine.node_bytes;
  estimate.exchange = plan.exchanged_bytes / (kMoveShare * exchange_rate);
  estimate.link = plan.link_bytes / (kMoveShare * machine.link_bytes);
  estimate.disk = static_cast<double>(plan.disk_traffic) / (kMoveShare * machine.disk_bytes);
  return estimate;
}

std::string estimate_text(const StepEstimate& estimate, const Machine& machine) {
  std::string parts;
  for_each_part(estimate, [&](const char* name, double seconds) {
    if (seconds > 0) parts += cat(parts.empty() ? "" : ", ", name, " ", seconds_text(seconds));
  });
  const bool share = estimate.link > 0 && estimate.host > 0;
  return cat("about ", seconds_text(estimate.total()), " a step on ", machine.name, ": ", parts, " (estimated, as if ",
             share ? "only link and host" : "nothing", " overlapped)");
}

nlohmann::ordered_json estimate_json(const StepEstimate& estimate, const Machine& machine) {
  nlohmann::ordered_json json;
  json["machine"] = machine.name;
  for_each_part(estimate, [&](const char* name, double seconds) { json[name] = seconds; });
  json["total"] = estimate.total();
  return json;
}

}  // namespace castor::strategy
