// Reading launchers' variables. Delicate: torchrun's agent may hold MASTER_PORT for a store of its own, and says so;
// ours then takes the next port.
#include "dist/launch.h"

#include <charconv>
#include <cstdlib>

#include <unistd.h>

#include "core/base/error.h"
#include "dist/secret.h"

namespace castor::dist {
namespace {

constexpr std::int64_t kDefaultPort = 29500;

[[noreturn]] void refuse(const std::string& launcher, const std::string& text) {
  throw ConfigError(cat("launcher ", launcher, ": ", text), "launcher");
}

class Reader {
 public:
  Reader(const Environment& environment, std::string launcher) : get_(environment), launcher_(std::move(launcher)) {}

  std::optional<std::string> text(const std::string& name) const { return get_(name); }
  std::string required(const std::string& name) const {
    if (const auto value = get_(name)) return *value;
    refuse(launcher_, cat(name, " is not set; start the program through that launcher, or choose another"));
  }
  /// The first of two names that is set.
  std::string required(const std::string& name, const std::string& other) const {
    if (const auto value = get_(name)) return *value;
    return required(other);
  }
  int number(const std::string& name, const std::string& value, std::int64_t low, std::int64_t high) const {
    std::int64_t result = 0;
    const auto end = std::from_chars(value.data(), value.data() + value.size(), result);
    if (end.ec != std::errc() || end.ptr != value.data() + value.size() || result < low || result > high) {
      refuse(launcher_, cat(name, ": expected an integer from ", low, " to ", high, ", got '", value, "'"));
    }
    return static_cast<int>(result);
  }
  int number_or(const std::string& name, std::int64_t otherwise, std::int64_t low, std::int64_t high) const {
    const auto value = get_(name);
    return value ? number(name, *value, low, high) : static_cast<int>(otherwise);
  }

 private:
  const Environment& get_;
  std::string launcher_;
};

/// The first host of "node[003-007,9],other" or "a,b".
std::string first_host(const std::string& list) {
  const std::size_t bracket = list.find('[');
  const std::size_t comma = list.find(',');
  if (bracket == std::string::npos || comma < bracket) return list.substr(0, comma);
  const std::size_t end = list.find_first_of(",-]", bracket);
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1);
}

bool is_loopback(const std::string& host) { return host == "localhost" || host == "::1" || host.starts_with("127."); }

void read_ranks(const Reader& reader, RankInfo& info) {
  std::string rank_name;
  std::string size_name;
  std::string local_name;
  if (info.launcher == "pytorch") {
    rank_name = "RANK", size_name = "WORLD_SIZE", local_name = "LOCAL_RANK";
  } else if (info.launcher == "slurm") {
    rank_name = "SLURM_PROCID", size_name = "SLURM_NTASKS", local_name = "SLURM_LOCALID";
  } else {
    const bool open_mpi = reader.text("OMPI_COMM_WORLD_RANK").has_value();
    rank_name = open_mpi ? "OMPI_COMM_WORLD_RANK" : "PMI_RANK";
    size_name = open_mpi ? "OMPI_COMM_WORLD_SIZE" : "PMI_SIZE";
    local_name = open_mpi ? "OMPI_COMM_WORLD_LOCAL_RANK" : "MPI_LOCALRANKID";
  }
  constexpr std::int64_t kMostRanks = 1 << 20;
  info.world_size = reader.number(size_name, reader.required(size_name), 1, kMostRanks);
  info.rank = reader.number(rank_name, reader.required(rank_name), 0, info.world_size - 1);
  info.local_rank = reader.number_or(local_name, info.rank, 0, kMostRanks);
  const char* local_size = info.launcher == "mpi" ? "OMPI_COMM_WORLD_LOCAL_SIZE" : "LOCAL_WORLD_SIZE";
  info.local_world_size = reader.number_or(local_size, info.local_rank + 1, 1, kMostRanks);
}

void read_store(const Reader& reader, RankInfo& info) {
  if (info.launcher == "slurm" && !reader.text("MASTER_ADDR")) {
    info.store_host = first_host(reader.required("SLURM_STEP_NODELIST", "SLURM_NODELIST"));
  } else if (info.launcher == "mpi" && !reader.text("MASTER_ADDR") && info.local_world_size == info.world_size) {
    info.store_host = "127.0.0.1";  // all ranks are on this machine
  } else {
    info.store_host = reader.required("MASTER_ADDR");
  }
  info.store_port = static_cast<std::uint16_t>(reader.number_or("MASTER_PORT", kDefaultPort, 1, 65535));
  const bool agent_has_port = reader.text("TORCHELASTIC_USE_AGENT_STORE").value_or("") == "True";
  if (agent_has_port) info.store_port = static_cast<std::uint16_t>(info.store_port % 65535 + 1);
  info.holds_store = info.rank == 0 && !reader.text("CASTOR_STORE_IS_SERVED");
  info.store_listen_address = info.store_host;
}

void read_restarts(const Reader& reader, RankInfo& info) {
  constexpr std::int64_t kMost = 1 << 20;
  info.restart_count = reader.number_or("TORCHELASTIC_RESTART_COUNT", 0, 0, kMost);
  info.full_world_size = reader.number_or("CASTOR_FULL_WORLD_SIZE", info.world_size, info.world_size, kMost);
  if (const auto id = reader.text("CASTOR_JOB_ID")) {
    info.job_id = *id;
  } else if (const auto run = reader.text("TORCHELASTIC_RUN_ID"); run && *run != "none") {
    info.job_id = *run;
  }
}

void read_secret(const Reader& reader, RankInfo& info) {
  if (const auto secret = reader.text("CASTOR_JOB_SECRET")) {
    if (secret->size() < 16) refuse(info.launcher, "CASTOR_JOB_SECRET: expected at least 16 characters");
    info.secret = *secret;
    return;
  }
  if (!is_loopback(info.store_host)) {
    refuse(info.launcher, cat("CASTOR_JOB_SECRET is not set, and the job meets at ", info.store_host,
                              ", where others may listen too; set it to the same random text on all hosts"));
  }
  info.secret = cat("loopback job of user ", getuid());
  for (const char* name : {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "MASTER_PORT"}) {
    info.secret += cat(" ", reader.text(name).value_or("-"));
  }
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
}

std::string infer_launcher(const Environment& environment) {
  if (environment("WORLD_SIZE")) return "pytorch";
  if (environment("SLURM_NTASKS")) return "slurm";
  if (environment("OMPI_COMM_WORLD_LOCAL_RANK")) return "mpi";
  return "none";
}

RankInfo rank_info_from(const Environment& environment, const std::string& launcher) {
  RankInfo info;
  info.launcher = launcher == "auto" ? infer_launcher(environment) : launcher;
  if (info.launcher == "none") {
    info.secret = JobSecret::random().text();
    return info;
  }
  if (info.launcher != "pytorch" && info.launcher != "slurm" && info.launcher != "mpi") {
    throw ConfigError(cat("launcher: expected pytorch, slurm, mpi, none or auto, got '", launcher, "'"), "launcher");
  }
  const Reader reader(environment, info.launcher);
  read_ranks(reader, info);
  read_store(reader, info);
  read_secret(reader, info);
  read_restarts(reader, info);
  return info;
}

}  // namespace castor::dist
