// The manifest of a checkpoint of 100 GiB, without its data: seconds to write it (text, file, fsync, rename) and to
// read and check it. The goal is a second each.
//
// The model is a decoder whose weights (bf16) have a master and two moments (f32), all tensors cut over 64 ranks, with
// random digests, one for each MiB. Delicate: nothing else may be on the clock, so the manifest is made before.
// Arguments: --gib N (100), --ranks N (64). The file lies in a folder of its own under the current directory.
#include "formats/manifest.h"

#include <cstdio>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/file.h"
#include "formats/checkpoint_reader.h"
#include "tests/bench/measure.h"
#include "tests/support/temp_dir.h"

using namespace castor;
using formats::LogicalTensor;
using formats::Manifest;
using formats::TensorSlice;

namespace {

// Adds tensors cut over ranks, each rank's slices one after the other in its two files.
class Builder {
 public:
  explicit Builder(std::size_t ranks) : ranks_(ranks) {
    for (const char* stem : {"model", "optimizer"}) {
      for (std::size_t rank = 1; rank <= ranks; ++rank) {
        char name[64];
        std::snprintf(name, sizeof name, "%s-%05zu-of-%05zu.safetensors", stem, rank, ranks);
        manifest.files.push_back({name, 4096, 4096, digest()});
      }
    }
  }

  Manifest manifest;
  std::uint64_t bytes = 0;

  void add(const std::string& name, const std::vector<std::int64_t>& shape) {
    add(name, "param", DType::bf16, shape, 0);
    for (const char* role : {"master", "exp_avg", "exp_avg_sq"}) add(name, role, DType::f32, shape, ranks_);
  }

 private:
  void add(const std::string& name, const char* role, DType dtype, const std::vector<std::int64_t>& shape,
           std::size_t first_file) {
    LogicalTensor tensor{name, role, dtype, shape, {}};
    const std::int64_t numel = tensor.numel();
    const auto ranks = static_cast<std::int64_t>(ranks_);
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      TensorSlice slice;
      slice.offset = numel / ranks * rank;
      slice.count = (rank + 1 == ranks ? numel : numel / ranks * (rank + 1)) - slice.offset;
      if (slice.count == 0) continue;
      slice.file = static_cast<std::uint32_t>(first_file + static_cast<std::size_t>(rank));
      const std::uint64_t size = static_cast<std::uint64_t>(slice.count) * dtype_size(dtype);
      slice.begin = manifest.files[slice.file].bytes;
      manifest.files[slice.file].bytes += size;
      for (std::uint64_t at = 0; at < size; at += formats::kDigestBlockBytes) slice.digests.push_back(digest());
      bytes += size;
      tensor.slices.push_back(std::move(slice));
    }
    manifest.tensors.push_back(std::move(tensor));
  }

  std::uint64_t digest() { return state_ = state_ * 6364136223846793005U + 1442695040888963407U; }

  std::size_t ranks_;
  std::uint64_t state_ = 1;
};

// A decoder of 4096 features, with as many layers as fill `bytes`.
Builder decoder(std::uint64_t bytes, std::size_t ranks) {
  constexpr std::int64_t kWidth = 4096, kInner = 14336, kWords = 128'256;
  Builder builder(ranks);
  builder.add("embed.weight", {kWords, kWidth});
  for (int layer = 0; builder.bytes < bytes; ++layer) {
    const std::string prefix = cat("blocks.", layer, ".");
    for (const char* name : {"attn.q", "attn.k", "attn.v", "attn.out"}) builder.add(prefix + name, {kWidth, kWidth});
    for (const char* name : {"mlp.gate", "mlp.up"}) builder.add(prefix + name, {kInner, kWidth});
    builder.add(prefix + "mlp.down", {kWidth, kInner});
    for (const char* name : {"norm1.weight", "norm2.weight"}) builder.add(prefix + name, {kWidth});
  }
  builder.manifest.sort();
  return builder;
}

void report(bench::Timing timing, const std::string& name, const std::function<double()>& step) {
  timing.name = name;
  timing.unit = "1/s";
  const bench::Measurement result = bench::measure(timing, step);
  std::fprintf(stderr, "%s: %.3f s (best %.3f, worst %.3f); others took %.0f %% of the CPUs\n", name.c_str(),
               1 / result.median, 1 / result.max, 1 / result.min, result.other_cpu_pct + result.steal_pct);
  bench::print_comparison(result, "one a second", 1);
}

int run(int argc, char** argv) {
  bench::Timing timing{"", "", 1, 1, 5, 1};
  std::uint64_t gibibytes = 100;
  std::size_t ranks = 64;
  const std::vector<std::string> arguments = bench::read_arguments(argc, argv, timing);
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--gib" && i + 1 < arguments.size()) {
      gibibytes = std::stoul(arguments[++i]);
    } else if (arguments[i] == "--ranks" && i + 1 < arguments.size()) {
      ranks = std::max<std::size_t>(1, std::stoul(arguments[++i]));
    } else {
      throw ConfigError("manifest: expected --gib N or --ranks N, got " + arguments[i], arguments[i]);
    }
  }
  const Builder built = decoder(gibibytes << 30, ranks);
  const test::TempDir folder(std::filesystem::current_path());
  const std::string path = (folder.path() / formats::kManifestName).string();
  report(timing, cat("manifest write ", gibibytes, " GiB"), [&] {
    write_file_atomically(path, formats::manifest_text(built.manifest, path));
    return 0.0;
  });
  std::size_t slices = 0, digests = 0;
  for (const LogicalTensor& tensor : built.manifest.tensors) {
    slices += tensor.slices.size();
    for (const TensorSlice& slice : tensor.slices) digests += slice.digests.size();
  }
  std::fprintf(stderr, "%zu tensors, %zu slices, %zu digests, %.1f MB of text\n", built.manifest.tensors.size(), slices,
               digests, static_cast<double>(file_size(path)) / 1e6);
  report(timing, cat("manifest read ", gibibytes, " GiB"), [&] {
    const auto checkpoint = formats::Checkpoint::open(folder.path().string());
    if (checkpoint.manifest().tensors.size() != built.manifest.tensors.size()) throw Error("manifest: tensors differ");
    return 0.0;
  });
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
