// What readers of foreign files may allocate, whatever the files say: never more at once than the file is long, and in
// all a bounded multiple of it.
//
// A program of its own, because operator new is replaced in it. Delicate: 4 KiB are always allowed, for what has a
// fixed size; the null at the end of a text counts as a byte of it.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>

#include <doctest/doctest.h>

#include "core/base/file_memory.h"
#include "core/base/json.h"
#include "formats/idx_file.h"
#include "formats/manifest.h"
#include "formats/safetensors.h"
#include "formats/segmented_list.h"
#include "formats/token_file.h"
#include "formats/torch_file.h"
#include "tests/support/allocation_watch.h"
#include "tests/support/hostile_files.h"

using namespace castor;
using castor::test::AllocationWatch;

namespace {

constexpr std::size_t kFloor = 4096;

struct Share {
  double largest = 0;  // allocation, as a share of the file
  double peak = 0;     // of all memory held
};

// Reads each file under a watch; FormatError is as good as success.
Share shares(const std::vector<std::string>& contents,
             const std::function<void(const std::string&, FileSystem&)>& read) {
  Share worst;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    CAPTURE(i);
    MemoryFileSystem files;
    File::open("/f", OpenMode::create, files).write_exact(as_byte_span(contents[i]), 0);
    std::size_t largest = 0, peak = 0;
    {
      AllocationWatch watch;
      try {
        read("/f", files);
      } catch (const FormatError&) {
      }
      largest = watch.largest();
      peak = watch.peak();
    }
    CHECK(largest > 0);
    CHECK(largest <= std::max(contents[i].size() + 1, kFloor));
    const auto size = static_cast<double>(contents[i].size());
    worst.largest = std::max(worst.largest, static_cast<double>(largest) / size);
    worst.peak = std::max(worst.peak, static_cast<double>(peak) / size);
  }
  return worst;
}

void report(const std::string& what, const Share& share) {
  MESSAGE(what << ": largest allocation " << share.largest << " of the file, in all " << share.peak);
}

}  // namespace

TEST_CASE("the watch sees what is allocated") {
  AllocationWatch watch;
  { const std::vector<std::byte> bytes(100'000); }
  const std::vector<std::byte> less(1000);
  CHECK(watch.largest() == 100'000);
  CHECK(watch.peak() == 100'000);
}

TEST_CASE("a segmented list keeps its elements where they are, in pieces of at most 4 KiB") {
  formats::SegmentedList<std::size_t> list;
  std::size_t largest = 0;
  {
    AllocationWatch watch;
    for (std::size_t i = 0; i < 10'000; ++i) list.push_back(10'000 - i);
    largest = watch.largest();
  }
  CHECK(largest == formats::kSegmentBytes);
  const std::size_t* first = &list.front();
  const std::size_t* middle = &list[5000];
  list.push_back(0);
  CHECK((first == &list[0] && middle == &list[5000]));
  CHECK(list.size() == 10'001);
  CHECK((*first == 10'000 && *middle == 5000 && list.back() == 0));
  std::sort(list.begin(), list.end());
  CHECK(std::is_sorted(list.begin(), list.end()));
  CHECK(*std::lower_bound(list.begin(), list.end(), std::size_t{77}) == 77);
  formats::SegmentedList<std::size_t> copy = list;
  copy.truncate(3);
  copy.push_back(9);
  CHECK((copy.size() == 4 && copy[2] == 2 && copy[3] == 9 && list.size() == 10'001));
  const formats::SegmentedList<std::size_t> moved = std::move(copy);
  CHECK((moved.size() == 4 && moved.end() - moved.begin() == 4));
  copy = {};
  CHECK((copy.empty() && copy.size() == 0 && copy.begin() == copy.end()));
}

TEST_CASE("no manifest makes its reader allocate more at once than it is long") {
  for (const std::size_t bytes : {5'000, 200'000}) {
    const Share share = shares(test::hostile_manifests(bytes), [](const std::string& path, FileSystem& files) {
      formats::parse_manifest(read_text_file(path, formats::kMaxManifestBytes, files), path);
    });
    report("manifest", share);
    if (bytes > 100'000) CHECK(share.peak < 24);
  }
}

TEST_CASE("no safetensors header makes its reader allocate more at once than the file is long") {
  for (const std::size_t bytes : {5'000, 200'000}) {
    const Share share = shares(test::hostile_safetensors(bytes), [](const std::string& path, FileSystem& files) {
      formats::SafetensorsFile::open(path, files);
    });
    report("safetensors", share);
    if (bytes > 100'000) CHECK(share.peak < 24);
  }
}

TEST_CASE("no PyTorch checkpoint makes its reader allocate more at once than it is long") {
  for (const std::size_t bytes : {5'000, 200'000}) {
    const Share share = shares(test::hostile_torch_files(bytes), [](const std::string& path, FileSystem& files) {
      const auto file = formats::TorchFile::open(path, {}, files);
      file.state_dict();
      file.verify();
    });
    report("torch", share);
    if (bytes > 100'000) CHECK(share.peak < 120);
  }
}

TEST_CASE("an IDX file takes the memory of the values that it really holds, at once") {
  for (const std::size_t bytes : {5'000, 200'000}) {
    const std::vector<std::string> contents = test::hostile_idx(bytes);
    for (std::size_t i = 0; i < contents.size(); ++i) {
      CAPTURE(i);
      MemoryFileSystem files;
      File::open("/f", OpenMode::create, files).write_exact(as_byte_span(contents[i]), 0);
      std::size_t held = 0;
      AllocationWatch watch;
      try {
        held = formats::read_idx_file("/f", {}, files).values.size();
      } catch (const FormatError&) {
      }
      CHECK(watch.largest() <= std::max({contents[i].size(), held, kFloor}));
    }
  }
}

TEST_CASE("a JSON tree takes a bounded multiple of its text") {
  using test::many;
  for (const std::string& text :
       {"[" + many(200'000, [](auto) { return "0"; }) + "]", "[" + many(200'000, [](auto) { return "\"\""; }) + "]",
        "[" + many(200'000, [](auto) { return "{}"; }) + "]", "[" + many(200'000, [](auto) { return "[0]"; }) + "]",
        "{" + many(200'000, [](std::size_t i) { return "\"" + cat(i) + "\":0"; }) + "}"}) {
    const AllocationWatch watch;
    parse_json(text, "j");
    CAPTURE(text.substr(0, 10));
    CHECK(watch.peak() < 50 * text.size());
  }
}

TEST_CASE("a token file is not copied") {
  const Share share = shares({std::string(100'000, 't')}, [](const std::string& path, FileSystem& files) {
    formats::TokenFile::open(path, 0.1, files);
  });
  CHECK(share.largest <= 1);
}
