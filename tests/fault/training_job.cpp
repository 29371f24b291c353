// The launcher's and the ranks' bodies, as skipped test cases that only this program asks for, and what the test sees
// of them.
#include "tests/fault/training_job.h"

#include <charconv>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <thread>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/job.h"
#include "dist/run_job.h"
#include "dist/socket.h"
#include "formats/checkpoint_list.h"
#include "formats/compare_tensors.h"
#include "strategy/runner/runner.h"
#include "tests/support/tiny_run.h"

namespace castor::test {
namespace {

using namespace std::chrono_literals;

constexpr const char* kFolder = "CASTOR_TEST_FOLDER";
constexpr int kCommError = 3;   // exit code of a rank that met CommError
constexpr int kOtherError = 4;  // and of one with an error of its own
constexpr const char* kRankBody = "rank body: train a tiny model";
constexpr const char* kLauncherBody = "launcher body: run a training job";
constexpr auto kLongest = 120s;

/// This program with one of the cases below as its work.
std::vector<std::string> command_of(const char* body) {
  return {std::filesystem::read_symlink("/proc/self/exe").string(), "--no-skip=true", "--minimal=true",
          cat("--test-case=", body)};
}

std::string variable(const char* name) { return dist::process_environment()(name).value_or(""); }
std::string in_folder(const std::string& name) { return join_path(variable(kFolder), name); }
int own_rank() { return dist::rank_info_from(dist::process_environment()).rank; }

void note(const std::string& name, const std::string& text) { write_file_atomically(in_folder(name), text); }

/// Does at `iter` what the job's misdeed says, on rank 1.
class Misdeed final : public strategy::Hook {
 public:
  explicit Misdeed(std::string what) : what_(std::move(what)) {}
  void after_train_iter(strategy::RunControl& run) override {
    if (what_.empty() || own_rank() != 1 || run.progress().iter != 4) return;
    if (what_ == "slow") std::this_thread::sleep_for(1500ms);
    // Until the test says that it may go on.
    if (what_ == "held") comes_within(600s, [] { return exists(in_folder("go on")); });
    if (what_ == "late") std::this_thread::sleep_for(600s);
    if (what_ == "throws") throw Error("rank 1 has had enough");
    if (what_ == "other collective") run.on_any_rank(false, "a misdeed");
  }

 private:
  std::string what_;
};

struct MisdeedConfig {
  std::string what;
};
template <class V>
void describe(V& v, MisdeedConfig& c) {
  v.field("what", c.what, "slow, held, late, throws, other collective, other size, or nothing");
}

std::vector<std::string> lines_in(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// A rank: trains as the variables say, and writes down the error that it meets.
void train() {
  const int rank = own_rank();
  int code = 0;
  try {
    strategy::Registry registry;
    add_tiny_types(registry);
    registry.hooks.add<MisdeedConfig>("Misdeed", "what a rank does wrong", [](const MisdeedConfig& config) {
      return std::make_unique<Misdeed>(config.what);
    });
    std::vector<std::string> overrides = lines_in(variable("CASTOR_TEST_OVERRIDES"));
    // Another number of weights.
    if (rank == 1 && variable("CASTOR_TEST_OVERRIDES").find("what: 'other size'") != std::string::npos)
      overrides.push_back("model.width=17");
    strategy::Runner runner(tiny_config(variable("CASTOR_TEST_WORK"), overrides), "tiny.yaml", registry);
    code = runner.train() ? 0 : 130;
  } catch (const CommError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    note(cat("error_", rank), cat(steady_ms(), " ", error.rank, " ", error.what()));
    code = kCommError;
  } catch (const std::exception& error) {
    note(cat("own_error_", rank), error.what());
    std::fprintf(stderr, "%s\n", error.what());
    code = kOtherError;
  }
  _exit(code);
}

/// The launcher.
void launch() {
  dist::RunJobOptions options;
  options.command = command_of(kRankBody);
  options.processes = std::stoi(variable("CASTOR_TEST_RANKS"));
  options.nodes = std::stoi(variable("CASTOR_TEST_NODES"));
  options.least_nodes = std::stoi(variable("CASTOR_TEST_LEAST_NODES"));
  if (options.nodes > 1) {
    options.node_rank = std::stoi(variable("CASTOR_TEST_NODE"));
    options.store_host = variable("CASTOR_TEST_HOST");
    options.store_port = static_cast<std::uint16_t>(std::stoi(variable("CASTOR_TEST_PORT")));
    options.secret = "a secret of this test";
    options.join_timeout = 60s;
  }
  options.least_processes = std::stoi(variable("CASTOR_TEST_LEAST_RANKS"));
  options.max_restarts = std::stoi(variable("CASTOR_TEST_RESTARTS"));
  options.output = dist::RunOutput::kMarked;
  options.own_end = 2500ms;
  options.term_end = 500ms;
  _exit(dist::run_job(options));
}

std::string read_if_there(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// A variable of another process's environment, as it was started.
std::optional<std::string> variable_of(const std::string& process, const std::string& name) {
  const std::string all = read_if_there("/proc/" + process + "/environ");
  for (std::size_t at = 0; at < all.size();) {
    const std::string entry = all.c_str() + at;
    if (entry.starts_with(name + "=")) return entry.substr(name.size() + 1);
    at += entry.size() + 1;
  }
  return std::nullopt;
}

std::vector<std::string> processes_with(const std::string& folder) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos || name == cat(getpid())) continue;
    if (variable_of(name, kFolder) == folder) found.push_back(name);
  }
  return found;
}

/// The numbers of all sockets that listen in this network namespace.
std::set<std::string> listening_sockets() {
  std::set<std::string> found;
  for (const char* file : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::istringstream table(read_if_there(file));
    std::string line;
    std::getline(table, line);
    while (std::getline(table, line)) {
      std::istringstream fields(line);
      std::vector<std::string> words;
      for (std::string word; fields >> word;) words.push_back(word);
      constexpr std::size_t kState = 3, kNumber = 9;
      if (words.size() > kNumber && words[kState] == "0A") found.insert(words[kNumber]);
    }
  }
  return found;
}

/// What lies in shared memory under a name, but for folders of tests.
std::set<std::string> named_memory() {
  std::set<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    const std::string name = entry.path().filename().string();
    if (name.find("castor") != std::string::npos && !name.starts_with("castor-test-")) found.insert(name);
  }
  return found;
}

}  // namespace

TEST_CASE("rank body: train a tiny model" * doctest::skip()) {
  if (!variable(kFolder).empty()) train();
}

TEST_CASE("launcher body: run a training job" * doctest::skip()) {
  if (!variable(kFolder).empty()) launch();
}

long long steady_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool comes_within(std::chrono::milliseconds limit, const std::function<bool()>& came) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!came()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(5ms);
  }
  return true;
}

TrainingJob::TrainingJob(const TrainingJobOptions& options)
    : port_(dist::Listener("127.0.0.1", 0).port()),
      work_dir_(options.work_dir.empty() ? (folder_.path() / "work").string() : options.work_dir),
      memory_before_(named_memory()) {
  std::vector<std::string> overrides = options.overrides;
  overrides.push_back("strategy.plugin=" + options.plugin);
  overrides.push_back(cat("env_cfg.dist_cfg.timeout=", options.timeout_s));
  if (!options.misdeed.empty()) overrides.push_back(cat("custom_hooks=[{type: Misdeed, what: ", options.misdeed, "}]"));
  std::string lines;
  for (const std::string& line : overrides) lines += line + "\n";
  const std::string temporary = (folder_.path() / "tmp").string();
  std::filesystem::create_directory(temporary);
  start(options, {{kFolder, folder_.path().string()},
                  {"CASTOR_TEST_WORK", work_dir_},
                  {"CASTOR_TEST_OVERRIDES", lines},
                  {"CASTOR_TEST_RANKS", cat(options.ranks)},
                  {"CASTOR_TEST_LEAST_RANKS", cat(options.least_ranks)},
                  {"CASTOR_TEST_RESTARTS", cat(options.max_restarts)},
                  {"CASTOR_TEST_NODES", cat(options.nodes)},
                  {"CASTOR_TEST_LEAST_NODES", cat(options.least_nodes)},
                  {"CASTOR_TEST_HOST", options.store_host},
                  {"CASTOR_TEST_PORT", cat(port_)},
                  {"TMPDIR", temporary}});
}

void TrainingJob::start(const TrainingJobOptions& options, const std::map<std::string, std::string>& variables) {
  const std::string log = (folder_.path() / "output").string();
  const int file = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  const auto run = [&](std::vector<std::string> command, const std::map<std::string, std::string>& further) {
    std::vector<std::string> environment;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string text = *entry;
      if (!variables.contains(text.substr(0, text.find('=')))) environment.push_back(text);
    }
    for (const auto* set : {&variables, &further}) {
      for (const auto& [name, value] : *set) environment.push_back(name + "=" + value);
    }
    launchers_.start(command, environment, {file, file});
  };
  const std::vector<std::string> body = command_of(kRankBody);
  switch (options.starter) {
    case Starter::kCastorRun:
      for (int node = 0; node < options.nodes; ++node) {
        std::vector<std::string> command;
        if (!options.node_prefixes.empty()) {
          std::istringstream words(options.node_prefixes[static_cast<std::size_t>(node)]);
          for (std::string word; words >> word;) command.push_back(word);
        }
        for (const std::string& word : command_of(kLauncherBody)) command.push_back(word);
        run(command, {{"CASTOR_TEST_NODE", cat(node)}});
      }
      break;
    case Starter::kTorchrun:
      for (int rank = 0; rank < options.ranks; ++rank) {
        run(body, {{"RANK", cat(rank)},
                   {"LOCAL_RANK", cat(rank)},
                   {"WORLD_SIZE", cat(options.ranks)},
                   {"LOCAL_WORLD_SIZE", cat(options.ranks)},
                   {"MASTER_ADDR", options.store_host},
                   {"MASTER_PORT", cat(port_)}});
      }
      break;
    case Starter::kSlurm:
      for (int rank = 0; rank < options.ranks; ++rank) {
        run(body, {{"SLURM_PROCID", cat(rank)},
                   {"SLURM_LOCALID", cat(rank)},
                   {"SLURM_NTASKS", cat(options.ranks)},
                   {"SLURM_JOB_ID", "17"},
                   {"SLURM_STEP_NODELIST", "localhost"},
                   {"MASTER_PORT", cat(port_)}});
      }
      break;
    case Starter::kMpirun: {
      std::vector<std::string> command{"mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
                                       "-n",     cat(options.ranks)};
      for (const std::string& word : body) command.push_back(word);
      run(command, {{"MASTER_PORT", cat(port_)}});
      break;
    }
  }
  close(file);
}

std::optional<int> TrainingJob::wait(std::chrono::milliseconds limit) {
  const auto all_ended = [&] {
    note_listeners();
    while (const auto end = launchers_.poll()) {
      if (end->index == 0) code_ = end->exit_code;
    }
    return launchers_.running() == 0;
  };
  if (!comes_within(limit, all_ended)) return std::nullopt;
  return code_;
}

void TrainingJob::note_listeners() {
  constexpr long long kEvery = 100;
  if (steady_ms() - noted_ms_ < kEvery) return;
  noted_ms_ = steady_ms();
  const std::set<std::string> listening = listening_sockets();
  for (const std::string& process : processes_with(folder_.path().string())) {
    std::error_code gone;
    for (std::filesystem::directory_iterator entry("/proc/" + process + "/fd", gone), end; !gone && entry != end;
         entry.increment(gone)) {
      std::error_code closed;  // meanwhile
      const std::string target = std::filesystem::read_symlink(entry->path(), closed).string();
      constexpr std::string_view kPrefix = "socket:[";
      if (!target.starts_with(kPrefix)) continue;
      const std::string number = target.substr(kPrefix.size(), target.size() - kPrefix.size() - 1);
      if (listening.contains(number)) listeners_.insert(number);
    }
  }
}

pid_t TrainingJob::process_of(int rank) const {
  for (const std::string& process : processes_with(folder_.path().string())) {
    if (variable_of(process, "RANK") == cat(rank)) return static_cast<pid_t>(std::stol(process));
  }
  return 0;
}

std::map<int, RankError> TrainingJob::errors() const {
  constexpr int kMostRanks = 16;
  std::map<int, RankError> found;
  for (int rank = 0; rank < kMostRanks; ++rank) {
    const std::string text = read_if_there((folder_.path() / cat("error_", rank)).string());
    if (text.empty()) continue;
    std::istringstream fields(text);
    RankError error;
    fields >> error.at_ms >> error.named;
    std::getline(fields, error.text, '\0');
    found[rank] = error;
  }
  return found;
}

std::vector<std::string> TrainingJob::leftovers(bool files) const {
  std::vector<std::string> found;
  const std::string folder = folder_.path().string();
  // A process that was killed is there until its new parent has waited for it, but has no environment any more.
  comes_within(2s, [&] { return processes_with(folder).empty(); });
  for (const std::string& process : processes_with(folder)) found.push_back("process " + process);
  for (const std::string& top : {work_dir_, folder + "/tmp"}) {
    if (!files || !std::filesystem::exists(top)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(top)) {
      const bool is_temporary = is_temporary_name(entry.path().filename().string()) || top != work_dir_;
      if (is_temporary) found.push_back("file " + entry.path().string());
    }
  }
  for (const std::string& number : listening_sockets()) {
    if (listeners_.contains(number)) found.push_back("a port that socket " + number + " listens on");
  }
  for (const std::string& name : named_memory()) {
    if (!memory_before_.contains(name)) found.push_back("shared memory " + name);
  }
  return found;
}

std::string TrainingJob::output() const { return read_if_there((folder_.path() / "output").string()); }

TrainingJobOptions job_with(const std::string& plugin) {
  TrainingJobOptions options;
  options.plugin = plugin;
  options.overrides = {
      "train_cfg.max_epochs=20", "log_level=INFO", "strategy.mixed_precision=bf16",
      "optim_wrapper.accumulative_counts=2",
      "default_hooks.checkpoint={type: CheckpointHook, interval: 2, by_epoch: false, max_keep_ckpts: 3}"};
  return options;
}

const Reference& reference(int ranks) {
  struct Kept {
    explicit Kept(int ranks) {
      TrainingJobOptions options = job_with("{type: TorchDDPPlugin}");
      options.ranks = ranks;
      options.work_dir = (folder.path() / "work").string();
      const long long began = steady_ms();
      TrainingJob job(options);
      const auto code = job.wait(kLongest);
      INFO(job.output());
      REQUIRE(code == 0);
      CHECK_FALSE(job.listeners().empty());  // so that a port that is left would be seen
      check_no_leftovers(job);
      reference.duration = std::chrono::milliseconds(steady_ms() - began);
      reference.checkpoint = newest_checkpoint(options.work_dir);
      REQUIRE_FALSE(reference.checkpoint.empty());
    }
    TempDir folder;
    Reference reference;
  };
  static std::map<int, std::unique_ptr<Kept>> kept;
  std::unique_ptr<Kept>& one = kept[ranks];
  if (!one) one = std::make_unique<Kept>(ranks);
  return one->reference;
}

void check_equal_end(const TrainingJob& job, const std::string& expected) {
  const std::string newest = newest_checkpoint(job.work_dir());
  CHECK(file_name_of(newest) == file_name_of(expected));
  if (!newest.empty()) CHECK(differences(newest, expected) == "");
}

void check_no_leftovers(const TrainingJob& job, bool files) {
  for (const std::string& one : job.leftovers(files)) CHECK(one == "nothing");
}

std::string differences(const std::string& checkpoint, const std::string& other) {
  const formats::CompareReport report =
      formats::compare_sources(formats::open_tensor_source(checkpoint), formats::open_tensor_source(other));
  std::string text = report.compared == 0 ? "nothing was compared" : "";
  for (const formats::TensorDifference& difference : report.differences)
    text += difference.role + " of " + difference.name + "; ";
  return text;
}

std::string newest_checkpoint(const std::string& work_dir) {
  const formats::CheckpointList list = formats::list_checkpoints(work_dir);
  return list.checkpoints.empty() ? std::string() : join_path(work_dir, list.checkpoints.front().name);
}

}  // namespace castor::test
