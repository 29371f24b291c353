// `castor run`: what its flags mean and what is refused, without starting anything, and that another program's command
// line behind it is left alone. Jobs of real processes are in tests/dist.
#include <sstream>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "strategy/cli/run.h"
#include "strategy/registry.h"

namespace {

using namespace castor;
using namespace castor::strategy;

struct Outcome {
  int code = 0;
  std::string out;
  std::string err;
  std::optional<dist::RunJobOptions> options;
};

Outcome run(std::vector<std::string> words) {
  Outcome outcome;
  words.insert(words.begin(), "run");
  Registry registry;
  std::ostringstream out;
  std::ostringstream err;
  outcome.code = run_command_line("castor", words, {run_command([&](const dist::RunJobOptions& options) {
                                    outcome.options = options;
                                    return 7;
                                  })},
                                  registry, out, err);
  outcome.out = out.str();
  outcome.err = err.str();
  return outcome;
}

bool refused(const std::vector<std::string>& words, const std::string& part) {
  const Outcome outcome = run(words);
  INFO(outcome.err);
  const bool named = outcome.err.find(part) != std::string::npos;
  CHECK(named);
  return named && outcome.code == kExitUsage && !outcome.options;
}

dist::Environment with_secret(const std::string& secret) {
  return [secret](const std::string& name) -> std::optional<std::string> {
    return name == "CASTOR_JOB_SECRET" && !secret.empty() ? std::optional(secret) : std::nullopt;
  };
}

RunArguments two_nodes() {
  RunArguments arguments;
  arguments.program = {"train"};
  arguments.nnodes = "2";
  arguments.node_rank = 1;
  arguments.rdzv_endpoint = "10.0.0.1:4711";
  return arguments;
}

}  // namespace

TEST_CASE("run takes torchrun's flags in both spellings and returns the code of the job") {
  const Outcome outcome = run({"--nproc-per-node=3", "--max_restarts", "2", "--rdzv-id", "night", "--standalone", "--",
                               "train", "--max-restarts", "9"});
  INFO(outcome.err);
  CHECK(outcome.code == 7);
  REQUIRE(outcome.options.has_value());
  CHECK(outcome.options->processes == 3);
  CHECK(outcome.options->max_restarts == 2);
  CHECK(outcome.options->stop_timeout == std::chrono::seconds(600));
  CHECK(outcome.options->run_id == "night");
  CHECK(outcome.options->store_port == 0);
  CHECK(outcome.options->output == dist::RunOutput::kMarked);
  CHECK(outcome.options->command == std::vector<std::string>{"train", "--max-restarts", "9"});
}

TEST_CASE("run leaves everything behind the program alone, with and without two dashes") {
  CHECK(run({"sh", "-c", "exit 3"}).options->command == std::vector<std::string>{"sh", "-c", "exit 3"});
  CHECK(run({"--", "sh", "--", "--help"}).options->command == std::vector<std::string>{"sh", "--", "--help"});
  CHECK(run({"--nproc_per_node", "2", "train", "--nproc_per_node"}).options->command ==
        std::vector<std::string>{"train", "--nproc_per_node"});
  CHECK(run({"--", "-odd-name"}).options->command == std::vector<std::string>{"-odd-name"});
}

TEST_CASE("run explains itself") {
  const Outcome outcome = run({"--help"});
  CHECK(outcome.code == kExitOk);
  CHECK(outcome.out.find("usage: castor run PROGRAM ... [options]") == 0);
  CHECK(outcome.out.find("--rdzv-endpoint") != std::string::npos);
  CHECK(outcome.out.find("--stop-timeout SECONDS") != std::string::npos);
}

TEST_CASE("run is told how long a stop may take") {
  CHECK(run({"--stop-timeout", "3600", "x"}).options->stop_timeout == std::chrono::hours(1));
}

TEST_CASE("run counts processors for cpu and auto") {
  CHECK(run({"--nproc-per-node", "cpu", "x"}).options->processes >= 1);
  CHECK(run({"--nproc-per-node", "auto", "x"}).options->processes >= 1);
}

TEST_CASE("run takes the meeting place in one flag or in two") {
  CHECK(run({"--rdzv-endpoint", "[::1]:80", "x"}).options->store_host == "::1");
  CHECK(run({"--rdzv-endpoint", "localhost:81", "x"}).options->store_port == 81);
  const Outcome outcome = run({"--master_addr", "localhost", "--master-port", "82", "x"});
  CHECK(outcome.options->store_host == "localhost");
  CHECK(outcome.options->store_port == 82);
}

TEST_CASE("run takes ranges of machines and ranks, and how long to wait for them") {
  RunArguments arguments = two_nodes();
  arguments.nnodes = "1:2";
  arguments.max_restarts = 3;
  arguments.rdzv_conf = "last_call_timeout=5,join_timeout=40";
  const dist::RunJobOptions options = run_job_options(arguments, with_secret("0123456789abcdef"));
  CHECK(options.nodes == 2);
  CHECK(options.least_nodes == 1);
  CHECK(options.last_call == std::chrono::seconds(5));
  CHECK(options.join_timeout == std::chrono::seconds(40));
  arguments.rdzv_conf = "patience=5";
  CHECK_THROWS_WITH_AS(run_job_options(arguments, with_secret("0123456789abcdef")),
                       doctest::Contains("--rdzv-conf: last_call_timeout=SECONDS and join_timeout=SECONDS"),
                       ConfigError);
  const Outcome outcome = run({"--nproc-per-node", "2:4", "--max-restarts", "1", "x"});
  CHECK(outcome.options->processes == 4);
  CHECK(outcome.options->least_processes == 2);
}

TEST_CASE("run over several machines needs a rank, a place and a secret") {
  const std::string secret = "0123456789abcdef";
  RunArguments arguments = two_nodes();
  const dist::RunJobOptions options = run_job_options(arguments, with_secret(secret));
  CHECK(options.nodes == 2);
  CHECK(options.node_rank == 1);
  CHECK(options.store_host == "10.0.0.1");
  CHECK(options.store_port == 4711);
  CHECK(options.secret == secret);
  arguments.rdzv_endpoint = "10.0.0.1";
  arguments.nnodes = "2:2";
  CHECK(run_job_options(arguments, with_secret(secret)).store_port == 29500);
  CHECK_THROWS_WITH_AS(run_job_options(arguments, with_secret("short")),
                       doctest::Contains("at least 16 characters in this variable on all of them, got 5"), ConfigError);
  arguments.rdzv_endpoint.reset();
  CHECK_THROWS_WITH_AS(run_job_options(arguments, with_secret(secret)),
                       doctest::Contains("--rdzv-endpoint: a job of several machines needs"), ConfigError);
  arguments = two_nodes();
  arguments.node_rank.reset();
  CHECK_THROWS_WITH_AS(run_job_options(arguments, with_secret(secret)),
                       doctest::Contains("--node-rank: a job of 2 machines needs"), ConfigError);
}

TEST_CASE("run refuses what it cannot do, by the flag's name") {
  CHECK(refused({"--nproc-per-node", "2"}, "PROGRAM is missing"));
  CHECK(refused({"--nproc-per-node", "gpu", "x"}, "--nproc-per-node: this build has no CUDA and sees no GPUs"));
  CHECK(refused({"--nproc-per-node", "two", "x"}, "a number, MIN:MAX, cpu, gpu or auto expected, got 'two'"));
  CHECK(refused({"--nproc-per-node", "2:4", "x"}, "--nproc-per-node: ranks become fewer in a restart only"));
  CHECK(refused({"--nproc-per-node", "4:2", "x"}, "--nproc-per-node: MIN is above MAX in '4:2'"));
  CHECK(refused({"--rdzv-conf", "join_timeout=9", "x"}, "--rdzv-conf: is for jobs of several machines"));
  CHECK(refused({"--nproc-per-node", "0", "x"}, "--nproc-per-node: a number from 1 to 4096 expected, got 0"));
  CHECK(refused({"--nnodes", "1:", "x"}, "--nnodes: N or MIN:MAX expected, got '1:'"));
  CHECK(refused({"--node-rank", "1", "x"}, "--node-rank: a number from 0 to 0 expected, got 1"));
  CHECK(refused({"--standalone", "--master-port", "80", "x"}, "--standalone: a job of this machine alone"));
  CHECK(refused({"--rdzv-endpoint", "a:1", "--master-port", "80", "x"}, "say the same; give one or the others"));
  CHECK(refused({"--rdzv-endpoint", "a:b", "x"}, "--rdzv-endpoint: HOST or HOST:PORT expected, got 'a:b'"));
  CHECK(refused({"--rdzv-endpoint", "a:70000", "x"}, "--rdzv-endpoint: a number from 0 to 65535 expected, got 70000"));
  CHECK(refused({"--rdzv-backend", "etcd", "x"}, "--rdzv-backend"));
  CHECK(refused({"--rdzv-id", "a/b", "x"}, "--rdzv-id: a name without '/' expected"));
  CHECK(refused({"--max-restarts", "-1", "x"}, "--max-restarts: a number from 0"));
  CHECK(refused({"--stop-timeout", "0", "x"}, "--stop-timeout: a number from 1 to 604800 expected, got 0"));
  CHECK(refused({"--nproc-per-nod", "2", "x"}, "did you mean --nproc-per-node?"));
}
