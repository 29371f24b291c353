// Streams against `dd`: 2 GiB written by StreamWriter and read by StreamReader, with an XXH3 digest of every MiB in the
// same pass as a checkpoint takes them, in turn with dd on the same disk (8 MiB blocks, O_DIRECT, fsync at the end).
//
// The peer's time is the one dd itself prints, without its start. Delicate: the peer writes zeros from one block; this
// side copies 512 MiB of noise, more than any cache holds, over and over. Files lie in a folder of their own under the
// current directory, which should be on the disk in question. Arguments: --mib N (2048), --no-hash.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/digest.h"
#include "core/base/file_stream.h"
#include "tests/bench/dd_peer.h"
#include "tests/bench/measure.h"
#include "tests/support/temp_dir.h"

using namespace castor;

namespace {

constexpr std::size_t kMebibyte = std::size_t{1} << 20;

std::vector<std::byte> noise(std::size_t bytes) {
  std::vector<std::byte> data(bytes);
  std::uint64_t state = 1;
  for (std::size_t i = 0; i + sizeof state <= bytes; i += sizeof state) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    std::memcpy(data.data() + i, &state, sizeof state);
  }
  return data;
}

struct Race {
  std::string path;
  std::size_t bytes;
  bool hash;
  std::vector<std::byte> source = noise(512 * kMebibyte);
  std::vector<std::uint64_t> digests = std::vector<std::uint64_t>(bytes / kMebibyte);

  double write() {
    StreamWriter writer(path);
    writer.expect_bytes(bytes);
    for (std::size_t i = 0; i < digests.size(); ++i) {
      const auto piece = std::span(source).subspan(i * kMebibyte % source.size(), kMebibyte);
      if (hash) digests[i] = xxh3(piece);
      writer.write(piece);
    }
    writer.finish();
    return 0;
  }

  double read() {
    StreamReader reader(path);
    const FileRange all{0, bytes};
    std::size_t wrong = 0;
    reader.read({&all, 1}, [&](std::size_t, std::uint64_t at, std::span<const std::byte> piece) {
      for (; hash && !piece.empty(); piece = piece.subspan(kMebibyte), at += kMebibyte) {
        wrong += xxh3(piece.first(kMebibyte)) != digests[at / kMebibyte] ? 1 : 0;
      }
    });
    if (wrong > 0) throw Error(cat("stream_io: ", wrong, " MiB read back differ from those written"));
    return static_cast<double>(reader.bytes_fetched());
  }

  double dd_write() const { return bench::dd_write_seconds(path, bytes); }
  double dd_read() const { return bench::dd_read_seconds(path); }
};

// The rounds of one direction as one result; the ratio's median is over the pairs.
void print(const bench::Timing& timing, const std::vector<bench::Measurement>& rounds,
           const std::vector<double>& peers) {
  bench::Measurement result;
  result.timing = timing;
  result.timing.repeats = static_cast<int>(rounds.size());
  std::vector<double> rates, ratios;
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    rates.push_back(rounds[i].median);
    ratios.push_back(rounds[i].median / peers[i]);
    result.threads = rounds[i].threads;
    result.other_cpu_pct = std::max(result.other_cpu_pct, rounds[i].other_cpu_pct);
    result.steal_pct = std::max(result.steal_pct, rounds[i].steal_pct);
  }
  result.median = bench::median_of(rates);
  result.min = *std::min_element(rates.begin(), rates.end());
  result.max = *std::max_element(rates.begin(), rates.end());
  std::fprintf(stderr, "%s: median of the pairs' ratios %.3f, least %.3f, greatest %.3f\n", timing.name.c_str(),
               bench::median_of(ratios), *std::min_element(ratios.begin(), ratios.end()),
               *std::max_element(ratios.begin(), ratios.end()));
  bench::print_comparison(result, "dd, O_DIRECT and fsync", bench::median_of(peers));
}

int run(int argc, char** argv) {
  bench::Timing timing{"", "GB/s", 0, 0, 9, 1};
  std::size_t mebibytes = 2048;
  bool hash = true;
  const std::vector<std::string> arguments = bench::read_arguments(argc, argv, timing);
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--no-hash") {
      hash = false;
    } else if (arguments[i] == "--mib" && i + 1 < arguments.size()) {
      mebibytes = std::max(std::stoul(arguments[++i]) / 8, 1UL) * 8;
    } else {
      throw ConfigError("stream_io: expected --repeats N, --mib N or --no-hash, got " + arguments[i], arguments[i]);
    }
  }
  const int pairs = timing.repeats;
  timing.repeats = 1;
  const test::TempDir folder(std::filesystem::current_path());
  Race race{(folder.path() / "stream").string(), mebibytes * kMebibyte, hash};
  timing.items_per_step = static_cast<double>(race.bytes) / 1e9;
  const std::string what = cat(mebibytes, " MiB", hash ? ", XXH3 of every MiB" : "");
  bench::Timing writing = timing, reading = timing;
  writing.name = "stream write " + what;
  reading.name = "stream read " + what;

  std::vector<bench::Measurement> writes, reads;
  std::vector<double> dd_writes, dd_reads;
  for (int pair = 0; pair < pairs; ++pair) {
    remove_file(race.path);
    dd_writes.push_back(timing.items_per_step / race.dd_write());
    remove_file(race.path);
    writes.push_back(bench::measure(writing, [&] { return race.write(); }));
    dd_reads.push_back(timing.items_per_step / race.dd_read());
    reads.push_back(bench::measure(reading, [&] { return race.read(); }));
    std::fprintf(stderr, "pair %d: write %.2f, dd %.2f; read %.2f, dd %.2f GB/s; others %.0f %% of the CPUs\n",
                 pair + 1, writes.back().median, dd_writes.back(), reads.back().median, dd_reads.back(),
                 std::max(writes.back().other_cpu_pct, reads.back().other_cpu_pct));
  }
  print(writing, writes, dd_writes);
  print(reading, reads, dd_reads);
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
