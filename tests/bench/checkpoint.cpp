// A checkpoint of 2 GiB saved and loaded, in turn with dd on the same disk and with PyTorch; how long an asynchronous
// save holds training up, beside one memcpy of the state; and the memory both take beside the state.
//
// The state is that of f32 training with Adam: parameters and two moments, 48 tensors each. Everything is included: the
// hashing of every byte, all syncs, the manifest, and for loading the copy into the tensors. Delicate: reading must be
// cold, so the files' pages are dropped before it. The peer's time is the one dd itself prints (zeros, 8 MiB blocks,
// O_DIRECT, fsync), torch's that of torch.save with fsync and torch.load of the same numbers of bytes. Files lie in a
// folder of their own under the current directory. Arguments: --repeats N (pairs, 7), --mib N (2048).
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/ops/random.h"
#include "formats/checkpoint_reader.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/saver.h"
#include "tests/bench/dd_peer.h"
#include "tests/bench/measure.h"
#include "tests/support/temp_dir.h"

using namespace castor;

namespace {

constexpr int kTensorsPerRole = 48;
const std::vector<std::string> kRoles = {"param", "exp_avg", "exp_avg_sq"};

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<strategy::StateTensor> make_state(std::uint64_t bytes, std::uint64_t seed) {
  const auto count = static_cast<std::int64_t>(bytes / (kRoles.size() * kTensorsPerRole * sizeof(float)));
  std::vector<strategy::StateTensor> state;
  for (const std::string& role : kRoles) {
    for (int i = 0; i < kTensorsPerRole; ++i) {
      const Tensor tensor = Tensor::empty({count}, DType::f32);
      fill_uniform(tensor, {seed, state.size()}, -1, 1);
      state.push_back({cat("blocks.", i, ".weight"), role, tensor});
    }
  }
  return state;
}

std::uint64_t bytes_of(const std::vector<strategy::StateTensor>& state) {
  std::uint64_t bytes = 0;
  for (const auto& each : state) bytes += each.tensor.view().bytes();
  return bytes;
}

// A field of /proc/self/status in bytes.
std::uint64_t status_bytes(const std::string& field) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen("/proc/self/status", "r"), std::fclose);
  char line[256];
  while (file != nullptr && std::fgets(line, sizeof line, file.get()) != nullptr) {
    if (std::strncmp(line, field.c_str(), field.size()) == 0) return std::stoull(line + field.size() + 1) * 1024;
  }
  throw Error("checkpoint: no " + field + " in /proc/self/status");
}

// The most memory that `work` held at one time beyond what there was before.
std::uint64_t extra_memory(const std::function<void()>& work) {
  {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> reset(std::fopen("/proc/self/clear_refs", "w"), std::fclose);
    if (reset == nullptr || std::fputs("5", reset.get()) < 0)
      throw Error("checkpoint: cannot reset the peak of memory");
  }
  const std::uint64_t before = status_bytes("VmRSS:");
  work();
  return status_bytes("VmHWM:") - before;
}

void drop_pages(const std::string& folder) {
  for (const DirectoryEntry& entry : list_directory(folder)) {
    const int file = ::open(join_path(folder, entry.name).c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    ::close(file);
  }
}

strategy::SaveRequest request_of(const std::vector<strategy::StateTensor>& state, const std::string& folder) {
  strategy::SaveRequest request;
  request.folder = folder;
  request.tensors = state;
  request.state = "{}";
  return request;
}

// Seconds that torch says save and load took, or nothing without torch.
std::vector<double> torch_seconds(const std::string& path, std::uint64_t bytes) {
  const std::string command =
      cat("/usr/bin/python3 -B tests/bench/peers/torch_checkpoint.py ", path, " ", bytes, " 2>/dev/null");
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  double save = 0, load = 0;
  if (pipe == nullptr || std::fscanf(pipe.get(), "%lf %lf", &save, &load) != 2) return {};
  return {save, load};
}

struct Rates {
  std::vector<double> ours, peer, torch;
};

void print(const bench::Timing& timing, const std::string& name, const Rates& rates,
           const bench::Measurement& machine) {
  bench::Measurement result = machine;
  result.timing = timing;
  result.timing.name = name;
  result.timing.unit = "GB/s";
  result.timing.repeats = static_cast<int>(rates.ours.size());
  result.median = bench::median_of(rates.ours);
  result.min = *std::min_element(rates.ours.begin(), rates.ours.end());
  result.max = *std::max_element(rates.ours.begin(), rates.ours.end());
  std::vector<double> ratios;
  for (std::size_t i = 0; i < rates.ours.size(); ++i) ratios.push_back(rates.ours[i] / rates.peer[i]);
  std::fprintf(stderr, "%s: median of the pairs' ratios %.3f; torch %.2f GB/s\n", name.c_str(),
               bench::median_of(ratios), rates.torch.empty() ? 0.0 : bench::median_of(rates.torch));
  bench::print_comparison(result, "dd, O_DIRECT and fsync", bench::median_of(rates.peer));
}

int run(int argc, char** argv) {
  bench::Timing timing{"", "GB/s", 1, 0, 7, 1};
  std::uint64_t mebibytes = 2048;
  const std::vector<std::string> arguments = bench::read_arguments(argc, argv, timing);
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] != "--mib" || i + 1 == arguments.size()) {
      throw ConfigError("checkpoint: expected --repeats N or --mib N, got " + arguments[i], arguments[i]);
    }
    mebibytes = std::max<std::uint64_t>(std::stoull(arguments[++i]) / 8, 1) * 8;
  }
  const int pairs = timing.repeats;
  timing.repeats = 1;
  const test::TempDir folder(std::filesystem::current_path());
  const std::string saved = (folder.path() / "iter_1").string(), raw = (folder.path() / "raw").string();
  const std::vector<strategy::StateTensor> state = make_state(mebibytes << 20, 1),
                                           loaded = make_state(mebibytes << 20, 2);
  const std::uint64_t bytes = bytes_of(state);
  const double gigabytes = static_cast<double>(bytes) / 1e9, dd_gigabytes = static_cast<double>(mebibytes << 20) / 1e9;

  Rates saves, loads;
  std::uint64_t save_memory = 0, load_memory = 0;
  bench::Measurement machine;
  for (int pair = 0; pair < pairs; ++pair) {
    saves.peer.push_back(dd_gigabytes / bench::dd_write_seconds(raw, mebibytes << 20));
    const bench::Measurement saving = bench::measure(timing, [&] {
      save_memory =
          std::max(save_memory, extra_memory([&] {
                     strategy::CheckpointSaver saver;
                     saves.ours.push_back(gigabytes / seconds_of([&] { saver.save(request_of(state, saved)); }));
                   }));
      return 0.0;
    });
    drop_pages(folder.path().string());
    drop_pages(saved);
    loads.peer.push_back(dd_gigabytes / bench::dd_read_seconds(raw));
    const bench::Measurement loading = bench::measure(timing, [&] {
      load_memory =
          std::max(load_memory, extra_memory([&] {
                     loads.ours.push_back(gigabytes / seconds_of([&] {
                                            const strategy::LoadSource source = strategy::LoadSource::open(saved);
                                            std::vector<strategy::Fill> fills;
                                            for (const auto& each : loaded)
                                              fills.push_back({source.find(each.role, each.name), each.tensor});
                                            strategy::fill(source, fills);
                                          }));
                   }));
      return 0.0;
    });
    for (std::size_t i = 0; i < state.size(); ++i) {
      if (std::memcmp(state[i].tensor.view().data, loaded[i].tensor.view().data, state[i].tensor.view().bytes()) != 0) {
        throw Error("checkpoint: what was loaded differs from what was saved");
      }
    }
    remove_file(raw);
    remove_tree(saved);
    const std::vector<double> torch = torch_seconds(raw, bytes);
    if (!torch.empty()) {
      saves.torch.push_back(gigabytes / torch[0]);
      loads.torch.push_back(gigabytes / torch[1]);
    }
    remove_file(raw);
    machine.other_cpu_pct = std::max({machine.other_cpu_pct, saving.other_cpu_pct, loading.other_cpu_pct});
    machine.steal_pct = std::max({machine.steal_pct, saving.steal_pct, loading.steal_pct});
    machine.threads = saving.threads;
    std::fprintf(stderr, "pair %d: save %.2f, dd %.2f; load %.2f, dd %.2f GB/s; others %.0f %%, steal %.0f %%\n",
                 pair + 1, saves.ours.back(), saves.peer.back(), loads.ours.back(), loads.peer.back(),
                 std::max(saving.other_cpu_pct, loading.other_cpu_pct), std::max(saving.steal_pct, loading.steal_pct));
  }

  // How long an asynchronous save blocks, beside copying the state once into memory that is there.
  std::vector<double> blocks, copies;
  {
    strategy::CheckpointSaver saver;
    saver.reserve(strategy::Snapshot::bytes_of(state));
    for (int pair = 0; pair < pairs; ++pair) {
      copies.push_back(seconds_of([&] {
        for (std::size_t i = 0; i < state.size(); ++i) {
          std::memcpy(loaded[i].tensor.view().data, state[i].tensor.view().data, state[i].tensor.view().bytes());
        }
      }));
      strategy::SaveRequest request = request_of(state, saved);
      request.asynchronous = true;
      blocks.push_back(seconds_of([&] { saver.save(std::move(request)); }));
      saver.wait();
    }
  }
  print(timing, cat("checkpoint save ", mebibytes, " MiB"), saves, machine);
  print(timing, cat("checkpoint cold load ", mebibytes, " MiB"), loads, machine);
  std::printf(
      "{\"name\": \"asynchronous save blocks\", \"value\": %.4f, \"unit\": \"s\", \"peer\": %.4f, \"ratio\": %.3f, "
      "\"peer_name\": \"one memcpy of the state\", \"repeats\": %d}\n",
      bench::median_of(blocks), bench::median_of(copies), bench::median_of(blocks) / bench::median_of(copies), pairs);
  std::printf("{\"name\": \"peak extra memory\", \"save_mib\": %.1f, \"load_mib\": %.1f}\n",
              static_cast<double>(save_memory) / 1048576.0, static_cast<double>(load_memory) / 1048576.0);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
