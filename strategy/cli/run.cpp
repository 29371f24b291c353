// From torchrun's flags to the options of the engine. Delicate: a flag is obeyed or refused with the reason; none is
// taken and forgotten, and flags that say the same must not contradict each other.
#include "strategy/cli/run.h"

#include <algorithm>
#include <charconv>
#include <memory>
#include <utility>

#include <sched.h>

#include "build_config.h"
#include "core/base/error.h"
#include "core/device/backend.h"

namespace castor::strategy {
namespace {

constexpr std::int64_t kDefaultPort = 29500;
constexpr std::int64_t kMostProcesses = 4096;
constexpr std::int64_t kMostNodes = 1 << 16;
constexpr std::int64_t kMostRestarts = 1 << 20;
constexpr std::int64_t kLongestWait = 7 * 24 * 3600;  // seconds
constexpr std::size_t kShortestSecret = 16;

[[noreturn]] void refuse(const std::string& flag, const std::string& text) {
  throw ConfigError(cat(flag, ": ", text), "");
}

int in_range(const std::string& flag, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) refuse(flag, cat("a number from ", low, " to ", high, " expected, got ", value));
  return static_cast<int>(value);
}

std::optional<std::int64_t> number_in(std::string_view text) {
  std::int64_t value = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc() || end.ptr != text.data() + text.size()) return std::nullopt;
  return value;
}

/// The CPUs that this process may use.
int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

/// "N" or "MIN:MAX".
struct Range {
  int least = 1;
  int most = 1;
};

Range range_of(const std::string& flag, const std::string& text, const char* expected, std::int64_t limit) {
  const std::size_t colon = text.find(':');
  const auto least = number_in(std::string_view(text).substr(0, colon));
  const auto most = colon == std::string::npos ? least : number_in(std::string_view(text).substr(colon + 1));
  if (!least || !most) refuse(flag, cat(expected, " expected, got '", text, "'"));
  const Range range{in_range(flag, *least, 1, limit), in_range(flag, *most, 1, limit)};
  if (range.least > range.most) refuse(flag, cat("MIN is above MAX in '", text, "'"));
  return range;
}

Range processes_of(const RunArguments& arguments) {
  const std::string flag = "--nproc-per-node";
  const std::string text = arguments.nproc_per_node.value_or("1");
  if (text == "auto" || text == "cpu" || text == "gpu") {
    const int gpus = text == "cpu" ? 0 : visible_gpus();
    if (text == "gpu" && gpus == 0) {
      refuse(flag, kHasCuda ? "CUDA sees no GPU here; give a number, cpu or auto, or see CUDA_VISIBLE_DEVICES"
                            : "this build has no CUDA and sees no GPUs; give a number or cpu, or configure with "
                              "-Dcuda=enabled");
    }
    const int ranks = gpus > 0 ? gpus : usable_cpus();
    return {ranks, ranks};
  }
  return range_of(flag, text, "a number, MIN:MAX, cpu, gpu or auto", kMostProcesses);
}

void set_sizes(const RunArguments& arguments, dist::RunJobOptions& options) {
  const Range processes = processes_of(arguments);
  const Range nodes = range_of("--nnodes", arguments.nnodes.value_or("1"), "N or MIN:MAX", kMostNodes);
  const bool may_restart = arguments.max_restarts > 0;
  options.processes = processes.most;
  options.nodes = nodes.most;
  options.least_nodes = nodes.least;
  if (processes.least == processes.most) return;
  if (nodes.most > 1) {
    refuse("--nproc-per-node",
           "MIN:MAX is for a job of one machine; of several let machines be fewer: --nnodes MIN:MAX");
  }
  if (!may_restart)
    refuse("--nproc-per-node", "ranks become fewer in a restart only; give --max-restarts, or one number");
  options.least_processes = processes.least;
}

void set_patience(const RunArguments& arguments, dist::RunJobOptions& options) {
  if (!arguments.rdzv_conf) return;
  const std::string flag = "--rdzv-conf";
  if (options.nodes == 1 || (options.least_nodes == options.nodes && arguments.max_restarts == 0)) {
    refuse(flag, "is for jobs of several machines that meet again: with --max-restarts, or --nnodes MIN:MAX");
  }
  std::string_view rest = *arguments.rdzv_conf;
  while (!rest.empty()) {
    const std::string entry(rest.substr(0, rest.find(',')));
    rest.remove_prefix(std::min(rest.size(), entry.size() + 1));
    const std::size_t equals = entry.find('=');
    const std::string key = entry.substr(0, equals);
    const auto seconds =
        equals == std::string::npos ? std::nullopt : number_in(std::string_view(entry).substr(equals + 1));
    if ((key != "last_call_timeout" && key != "join_timeout") || !seconds) {
      refuse(flag, cat("last_call_timeout=SECONDS and join_timeout=SECONDS expected, got '", entry, "'"));
    }
    const std::chrono::seconds time(in_range(flag, *seconds, 0, kLongestWait));
    (key == "join_timeout" ? options.join_timeout : options.last_call) = time;
  }
}

struct Endpoint {
  std::string host;
  std::optional<std::int64_t> port;
};

/// "host", "host:port", "[::1]:port".
Endpoint parse_endpoint(const std::string& text) {
  const auto wrong = [&] { refuse("--rdzv-endpoint", cat("HOST or HOST:PORT expected, got '", text, "'")); };
  Endpoint endpoint;
  std::string port;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string::npos) wrong();
    endpoint.host = text.substr(1, end - 1);
    port = text.substr(end + 1);
  } else {
    const std::size_t colon = text.find(':');
    endpoint.host = text.substr(0, colon);
    if (colon != std::string::npos) port = text.substr(colon);
  }
  if (endpoint.host.empty()) wrong();
  if (port.empty()) return endpoint;
  endpoint.port = port[0] == ':' ? number_in(std::string_view(port).substr(1)) : std::nullopt;
  if (!endpoint.port) wrong();
  return endpoint;
}

void set_store(const RunArguments& arguments, dist::RunJobOptions& options) {
  const bool names_place = arguments.rdzv_endpoint || arguments.master_addr || arguments.master_port;
  if (arguments.standalone && (options.nodes > 1 || names_place)) {
    refuse("--standalone",
           "a job of this machine alone finds its own port; leave out --nnodes, --rdzv-endpoint and --master-*");
  }
  if (arguments.rdzv_endpoint && (arguments.master_addr || arguments.master_port)) {
    refuse("--rdzv-endpoint", "--master-addr and --master-port say the same; give one or the others");
  }
  Endpoint endpoint{arguments.master_addr.value_or(""), arguments.master_port};
  if (arguments.rdzv_endpoint) endpoint = parse_endpoint(*arguments.rdzv_endpoint);
  const std::string port_flag = arguments.rdzv_endpoint ? "--rdzv-endpoint" : "--master-port";
  if (!endpoint.host.empty()) options.store_host = endpoint.host;
  if (endpoint.port) {
    options.store_port = static_cast<std::uint16_t>(in_range(port_flag, *endpoint.port, 0, 65535));
  }
  if (options.nodes == 1) return;
  if (endpoint.host.empty()) {
    refuse("--rdzv-endpoint", "a job of several machines needs the address of machine 0, as HOST:PORT, on all of them");
  }
  if (!endpoint.port) options.store_port = kDefaultPort;
  if (options.store_port == 0) refuse(port_flag, "machines can only agree on a port from 1 to 65535, got 0");
}

void set_secret(const dist::Environment& environment, dist::RunJobOptions& options) {
  if (options.nodes == 1) return;  // a random one, which nobody else has to know
  options.secret = environment("CASTOR_JOB_SECRET").value_or("");
  if (options.secret.size() < kShortestSecret) {
    throw ConfigError(cat("CASTOR_JOB_SECRET: a job of several machines needs the same random text of at least ",
                          kShortestSecret, " characters in this variable on all of them, got ", options.secret.size(),
                          "; make one with: head -c 32 /dev/urandom | base64"),
                      "");
  }
}

}  // namespace

dist::RunJobOptions run_job_options(const RunArguments& arguments, const dist::Environment& environment) {
  dist::RunJobOptions options;
  options.command = arguments.program;
  set_sizes(arguments, options);
  if (options.nodes > 1 && !arguments.node_rank) {
    refuse("--node-rank", cat("a job of ", options.nodes, " machines needs the number of this one, from 0 to ",
                              options.nodes - 1, "; machine 0 is the one that the endpoint names"));
  }
  options.node_rank = in_range("--node-rank", arguments.node_rank.value_or(0), 0, options.nodes - 1);
  set_store(arguments, options);
  set_secret(environment, options);
  set_patience(arguments, options);
  options.max_restarts = in_range("--max-restarts", arguments.max_restarts, 0, kMostRestarts);
  options.stop_timeout = std::chrono::seconds(in_range("--stop-timeout", arguments.stop_timeout, 1, kLongestWait));
  if (arguments.rdzv_id) {
    const std::string& id = *arguments.rdzv_id;
    if (id.empty() || id == "." || id == ".." || id.find('/') != std::string::npos) {
      refuse("--rdzv-id", cat("a name without '/' expected, got '", id, "'"));
    }
    options.run_id = id;
  }
  options.output = options.processes > 1 ? dist::RunOutput::kMarked : dist::RunOutput::kOwn;
  if (arguments.log_dir) {
    if (arguments.log_dir->empty()) refuse("--log-dir", "a folder expected, got nothing");
    options.output = dist::RunOutput::kFiles;
    options.log_folder = *arguments.log_dir;
  }
  return options;
}

Subcommand run_command(std::function<int(const dist::RunJobOptions&)> run_job) {
  auto arguments = std::make_shared<RunArguments>();
  Subcommand command;
  command.name = "run";
  command.summary = "start a program as the ranks of a job, with torchrun's flags and environment variables";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    list.option("--nproc-per-node,--nproc_per_node", arguments->nproc_per_node, "N|MIN:MAX|cpu|gpu|auto",
                "ranks on this machine; cpu: one for each CPU that may be used; gpu: one for each GPU; auto: gpu where "
                "there are GPUs, else cpu; MIN:MAX: MAX, and fewer in a restart after the same rank has failed first "
                "twice (default 1)");
    list.option("--nnodes", arguments->nnodes, "N|MIN:MAX",
                "machines; each runs this command with its own --node-rank; with MIN:MAX the job starts, and starts "
                "again, on those that are there (default 1)");
    list.option("--node-rank,--node_rank", arguments->node_rank, "N", "the number of this machine, from 0");
    list.option("--rdzv-endpoint,--rdzv_endpoint", arguments->rdzv_endpoint, "HOST:PORT",
                "where ranks meet: the address of machine 0, which listens there; left out: this machine's loopback "
                "and any free port");
    list.choice("--rdzv-backend,--rdzv_backend", arguments->rdzv_backend, {"c10d", "static"},
                "both mean the meeting place that machine 0 serves");
    list.option("--rdzv-id,--rdzv_id", arguments->rdzv_id, "NAME",
                "the job's name, TORCHELASTIC_RUN_ID (default castor)");
    list.option("--rdzv-conf,--rdzv_conf", arguments->rdzv_conf, "KEY=SECONDS,...",
                "last_call_timeout: wait so long for machines above MIN at the start (30); join_timeout: and for those "
                "up to MIN (600)");
    list.flag("--standalone", arguments->standalone, "a job of this machine alone, with a port of its own");
    list.option("--master-addr,--master_addr", arguments->master_addr, "HOST", "as the host of --rdzv-endpoint");
    list.option("--master-port,--master_port", arguments->master_port, "PORT", "as the port of --rdzv-endpoint");
    list.option("--max-restarts,--max_restarts", arguments->max_restarts, "N",
                "how often a job that failed is started anew, all ranks together; castor train then goes on from the "
                "newest checkpoint that this job saved");
    list.option(
        "--stop-timeout", arguments->stop_timeout, "SECONDS",
        "Ctrl-C and SIGTERM go to all ranks, which finish their step, save and end; those that take longer than "
        "this are killed, and a second signal ends them at once");
    list.option("--log-dir,--log_dir", arguments->log_dir, "DIR",
                "write what ranks print to DIR/NAME/attempt_0/RANK/stdout.log and stderr.log; left out: rank 0 prints "
                "here, and lines of other ranks begin with [rank1]:");
    list.rest("PROGRAM", arguments->program,
              "the program, looked for in PATH, and its arguments; put -- before it, or nothing");
  };
  command.run = [arguments, run_job = std::move(run_job)](Registry&, std::ostream&) {
    return run_job(run_job_options(*arguments, dist::process_environment()));
  };
  return command;
}

}  // namespace castor::strategy
