// Tensors in a scratch file: the same values as in memory, through a bounded number of buffers, and errors that say
// whose bytes they were about.
#include "dist/chunk/disk_tier.h"

#include <filesystem>
#include <optional>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file_fault.h"
#include "core/base/file_memory.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "strategy/checkpoint/snapshot.h"
#include "tests/support/temp_dir.h"

using namespace castor;
using namespace castor::dist;

namespace {

constexpr int kBlocks = 8;
constexpr std::int64_t kElements = 5000;  // no multiple of a disk's block

/// Two tensors a block, on disk.
struct Tensors {
  Tensors(const std::string& directory, FileSystem& files = posix_file_system(), Device host = kHost)
      : tier({directory, host, Category::optimizer, "states", &files}) {
    for (int i = 0; i < kBlocks; ++i) {
      autograd::StateHome& block = tier.add_block("chunk " + std::to_string(i));
      for (int j = 0; j < 2; ++j) all.push_back(block.make_state({kElements + i}, DType::f32));
    }
  }
  DiskTier tier;
  std::vector<Tensor> all;
};

std::vector<float> streamed(const Tensor& x) {
  std::vector<float> values(static_cast<std::size_t>(x.numel()));
  x.storage()->read(0, std::as_writable_bytes(std::span(values)));
  return values;
}

TEST_CASE("tensors on disk keep their values while three blocks at most have memory, and come ahead of their use") {
  const test::TempDir folder;
  const std::size_t before = allocator(kHost).stats().current_total;
  {
    Tensors tensors((folder.path() / "made").string());
    for (const Tensor& each : tensors.all) CHECK(streamed(each) == std::vector<float>(streamed(each).size(), 0.0f));
    for (int pass = 0; pass < 3; ++pass) {
      for (std::size_t i = 0; i < tensors.all.size(); ++i) {
        const Tensor& each = tensors.all[i];
        CHECK(each.to_vector<float>()[7] == static_cast<float>(pass == 0 ? 0 : i + static_cast<std::size_t>(pass)));
        fill(each, static_cast<double>(i) + pass + 1);
      }
    }
    const std::int64_t block = (2 * (kElements + kBlocks) * 4 + 4095) / 4096 * 4096;
    CHECK(tensors.tier.buffer_bytes() <= 3 * (block + 4096));
    CHECK(allocator(kHost).stats().current_total - before <= static_cast<std::size_t>(3 * (block + 8192)));
    CHECK(tensors.tier.file_bytes() > kBlocks * (block - 8192));
    const DiskTraffic traffic = tensors.tier.traffic();
    CHECK(traffic.blocks == 3 * kBlocks);
    CHECK(traffic.ahead == 3 * kBlocks - 1);
    CHECK(traffic.read_bytes >= 3 * tensors.tier.file_bytes());
    CHECK(traffic.written_bytes >= 2 * tensors.tier.file_bytes());
    CHECK(std::filesystem::is_empty(folder.path() / "made"));  // the name is gone while the file is in use
  }
  CHECK(allocator(kHost).stats().current_total == before);
}

TEST_CASE("uses in any order and streams over any range see one and the same bytes") {
  const test::TempDir folder;
  Tensors tensors(folder.path().string());
  std::vector<std::vector<float>> expected;
  for (const Tensor& each : tensors.all) expected.emplace_back(static_cast<std::size_t>(each.numel()), 0.0f);
  std::uint64_t draw = 0;
  const auto random = [&](std::size_t below) {
    return static_cast<std::size_t>(philox({11, 0}, draw++).word[0]) % below;
  };
  std::size_t i = 0;
  for (int step = 0; step < 600; ++step) {
    const std::size_t move = random(4);  // up, down, stay or jump
    i = move == 0   ? (i + 1) % expected.size()
        : move == 1 ? (i + expected.size() - 1) % expected.size()
        : move == 2 ? i
                    : random(expected.size());
    std::vector<float>& values = expected[i];
    const std::size_t begin = random(values.size()), count = random(values.size() - begin) + 1;
    const auto value = static_cast<float>(step);
    const Tensor& x = tensors.all[i];
    switch (random(4)) {
      case 0:
        fill(x.narrow(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(count)), value);
        std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(begin), count, value);
        break;
      case 1: {
        const std::vector<float> data(count, value);
        x.storage()->write(begin * 4, std::as_bytes(std::span(data)));
        std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(begin), count, value);
        break;
      }
      case 2:
        CHECK(streamed(x) == values);
        break;
      default:
        CHECK(x.to_vector<float>() == values);
    }
  }
  for (std::size_t t = 0; t < expected.size(); ++t) CHECK(streamed(tensors.all[t]) == expected[t]);
}

TEST_CASE("a save in the background sees tensors on disk as they were when it began") {
  const test::TempDir folder;
  Tensors tensors(folder.path().string());
  std::vector<strategy::StateTensor> saved;
  for (std::size_t i = 0; i < tensors.all.size(); ++i) {
    fill(tensors.all[i], static_cast<double>(i));
    saved.push_back({std::to_string(i), "exp_avg", tensors.all[i]});
  }
  std::vector<std::byte> room(4 * kElements * 4);  // for copies of a few: trainer and writer wait for each other
  strategy::Snapshot snapshot(saved, room);
  std::thread writer([&] {
    for (std::size_t i = 0; i < saved.size(); ++i) {
      std::vector<float> values(static_cast<std::size_t>(saved[i].tensor.numel()));
      snapshot.source(i)(0, std::as_writable_bytes(std::span(values)));
      CHECK(values == std::vector<float>(values.size(), static_cast<float>(i)));
    }
  });
  for (const Tensor& each : tensors.all) {
    snapshot.before_change(each);
    fill(each, -1);
  }
  writer.join();
  for (const Tensor& each : tensors.all) CHECK(streamed(each)[3] == -1);
}

TEST_CASE("a full disk is an error before anything is used") {
  MemoryFileSystem small;
  small.set_capacity(100000);
  CHECK_THROWS_WITH_AS(Tensors("/scratch", small).tier.open(), doctest::Contains("ENOSPC"), IoError);
  // A disk that reserves: it is asked for everything at once.
  MemoryFileSystem memory;
  FaultFileSystem faulty(memory);
  std::uint64_t reservation = 0;  // counted from the first operation of open()
  for (const bool fails : {false, false, true}) {
    Tensors tensors("/scratch", faulty);
    const std::uint64_t before = faulty.operations();
    if (fails) faulty.inject({before + reservation, FaultKind::error, 28});
    if (fails) {
      CHECK_THROWS_WITH_AS(tensors.tier.open(), doctest::Contains("reserve space"), IoError);
      continue;
    }
    tensors.tier.open();
    const std::vector<FileOperation> log = faulty.log();
    for (reservation = 0; log[before + reservation].kind != FileOperationKind::reserve;) ++reservation;
    CHECK(log[before + reservation].bytes == static_cast<std::uint64_t>(tensors.tier.file_bytes()));
  }
}

TEST_CASE("a transfer that fails names the block, the file and the cause, at the next use of the disk") {
  MemoryFileSystem memory;
  const auto run = [&](std::optional<std::uint64_t> fail) {
    FaultFileSystem faulty(memory);
    Tensors tensors("/scratch", faulty);
    tensors.tier.open();
    const std::uint64_t first = faulty.operations();
    if (fail) faulty.inject({first + *fail, FaultKind::error, 5});
    for (int pass = 0; pass < 2; ++pass) {
      for (const Tensor& each : tensors.all) fill(each, 1);
    }
    for (const Tensor& each : tensors.all) streamed(each);
    std::vector<FileOperation> log = faulty.log();
    log.erase(log.begin(), log.begin() + static_cast<std::ptrdiff_t>(first));
    return log;
  };
  const std::vector<FileOperation> log = run({});
  CHECK(log.size() > 4 * kBlocks - 3);
  int failures = 0;
  for (std::uint64_t at = 2; at + 6 < log.size(); at += 3) {
    try {
      run(at);
    } catch (const IoError& error) {
      const std::string text = error.what();
      ++failures;
      CHECK_MESSAGE(text.find("states of chunk ") != std::string::npos, text);
      CHECK_MESSAGE(text.find(".castor-scratch-") != std::string::npos, text);
      CHECK(error.code == 5);
    }
  }
  CHECK(failures > 5);
}

TEST_CASE("on meta the buffers count as memory and nothing is read or written") {
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  Tensors tensors("/nowhere/to/be/found", posix_file_system(), meta);
  for (const Tensor& each : tensors.all) each.view();
  CHECK(allocator(meta).stats().current[static_cast<std::size_t>(Category::optimizer)] >=
        static_cast<std::size_t>(tensors.tier.buffer_bytes()));
  CHECK(tensors.tier.traffic().blocks == kBlocks);
  CHECK(tensors.tier.traffic().written_bytes > 0);
}

}  // namespace
