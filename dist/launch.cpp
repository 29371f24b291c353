// Reading launchers' variables. Delicate: torchrun's agent may hold MASTER_PORT for a store of its own, and says so;
// ours then takes the next port.
#include "dist/launch.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include <unistd.h>

#include "core/base/error.h"
#include "dist/secret.h"

namespace castor::dist {
namespace {

constexpr std::int64_t kDefaultPort = 29500;
constexpr std::int64_t kMostRanks = 1 << 20;

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
      refuse_value(name, cat("an integer from ", low, " to ", high), value);
    }
    return static_cast<int>(result);
  }
  [[noreturn]] void refuse_value(const std::string& name, const std::string& expected, const std::string& value) const {
    refuse(launcher_, cat(name, ": expected ", expected, ", got '", value, "'"));
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

/// How many tasks a node has by slurm's list "2(x3),1": two on nodes 0 to 2, one on node 3.
int tasks_of_node(const Reader& reader, const std::string& name, const std::string& list, int least) {
  const auto number = [&](std::string_view text, std::int64_t low) {
    return reader.number(name, std::string(text), low, kMostRanks);
  };
  const bool is_one_entry = list.find(',') == std::string::npos;
  const int node = is_one_entry ? 0 : reader.number("SLURM_NODEID", reader.required("SLURM_NODEID"), 0, kMostRanks);
  std::string_view rest = list;
  for (std::int64_t first = 0; !rest.empty();) {
    const std::string_view entry = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), entry.size() + 1));
    const std::size_t bracket = entry.find("(x");
    if (bracket == std::string_view::npos) {
      first += 1;
    } else {
      if (!entry.ends_with(')')) break;
      first += number(entry.substr(bracket + 2, entry.size() - bracket - 3), 1);
    }
    if (node < first) return number(entry.substr(0, bracket), least);
  }
  reader.refuse_value(name, "a list of tasks on each node like 2(x3),1 with an entry for this one", list);
}

/// Ranks on this machine, of which it has at least one more than the own local number says.
int local_world_size(const Reader& reader, const RankInfo& info) {
  const int least = info.local_rank + 1;
  if (info.launcher == "slurm") {
    // The step's own list counts; the others are of the job that it runs in.
    for (const char* name : {"SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}) {
      if (const auto list = reader.text(name)) return tasks_of_node(reader, name, *list, least);
    }
    return least;
  }
  if (info.launcher == "pytorch") return reader.number_or("LOCAL_WORLD_SIZE", least, 1, kMostRanks);
  const bool open_mpi = reader.text("OMPI_COMM_WORLD_LOCAL_SIZE").has_value();
  return reader.number_or(open_mpi ? "OMPI_COMM_WORLD_LOCAL_SIZE" : "MPI_LOCALNRANKS", least, 1, kMostRanks);
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
  info.world_size = reader.number(size_name, reader.required(size_name), 1, kMostRanks);
  info.rank = reader.number(rank_name, reader.required(rank_name), 0, info.world_size - 1);
  info.local_rank = reader.number_or(local_name, info.rank, 0, kMostRanks);
  info.local_world_size = local_world_size(reader, info);
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
