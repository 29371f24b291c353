// Views streamed as contiguous bytes: any cut into pieces gives what an element-by-element reading gives, whatever the
// strides. Bytes come from a formula, so that extents far larger than memory can be tested too.
#include "formats/strided_source.h"

#include <algorithm>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"

namespace castor::formats {
namespace {

std::byte byte_at(std::uint64_t place) { return static_cast<std::byte>((place * 0x9E3779B97F4A7C15ull) >> 56); }

ByteSource formula(std::uint64_t* bytes_read = nullptr, std::size_t* largest = nullptr) {
  return [=](std::uint64_t offset, std::span<std::byte> out) {
    if (bytes_read != nullptr) *bytes_read += out.size();
    if (largest != nullptr) *largest = std::max(*largest, out.size());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = byte_at(offset + i);
  };
}

// Byte `at` of the view, by the definition of strides.
std::byte expected_at(const StridedBytes& view, std::uint64_t at) {
  std::uint64_t rest = at / view.item_bytes;
  std::uint64_t place = view.begin + at % view.item_bytes;
  for (std::size_t i = view.shape.size(); i-- > 0;) {
    const auto size = static_cast<std::uint64_t>(view.shape[i]);
    place += rest % size * static_cast<std::uint64_t>(view.strides[i]) * view.item_bytes;
    rest /= size;
  }
  return byte_at(place);
}

std::uint64_t bytes_of(const StridedBytes& view) {
  std::uint64_t bytes = view.item_bytes;
  for (const std::int64_t size : view.shape) bytes *= static_cast<std::uint64_t>(size);
  return bytes;
}

TEST_CASE("random views give the same bytes in pieces of any length") {
  std::mt19937_64 random(7);
  const auto below = [&](std::uint64_t bound) { return random() % bound; };
  for (int round = 0; round < 300; ++round) {
    StridedBytes view;
    view.begin = below(100);
    view.item_bytes = std::uint64_t{1} << below(4);
    for (std::uint64_t axis = below(5); axis-- > 0;) {
      view.shape.push_back(static_cast<std::int64_t>(1 + below(6)));
      view.strides.push_back(static_cast<std::int64_t>(below(4) == 0 ? below(3) : below(40)));
    }
    const std::uint64_t bytes = bytes_of(view);
    const ByteSource source = strided_source(view, formula());
    std::vector<std::byte> got(bytes);
    for (std::uint64_t at = 0; at < bytes;) {
      const std::uint64_t count = std::min(1 + below(50), bytes - at);
      source(at, std::span(got).subspan(at, count));
      at += count;
    }
    bool equal = true;
    for (std::uint64_t at = 0; at < bytes; ++at) equal = equal && got[at] == expected_at(view, at);
    CHECK(equal);
  }
}

TEST_CASE("a contiguous view is read in one piece, straight into the caller's bytes") {
  std::uint64_t bytes_read = 0;
  std::size_t largest = 0;
  const ByteSource source =
      strided_source({{3, 1, 100'000, 2}, {200'000, 7, 2, 1}, 5, 4}, formula(&bytes_read, &largest));
  std::vector<std::byte> all(2'400'000);
  source(0, all);
  CHECK(bytes_read == all.size());
  CHECK(largest == all.size());
  CHECK(all[1'234'567] == byte_at(5 + 1'234'567));
}

TEST_CASE("a transposed view of moderate extent is read from the file once") {
  std::uint64_t bytes_read = 0;
  const StridedBytes view{{300, 200}, {1, 300}, 8, 4};
  const ByteSource source = strided_source(view, formula(&bytes_read));
  std::vector<std::byte> got(240'000);
  for (std::size_t at = 0; at < got.size(); at += 1000) source(at, std::span(got).subspan(at, 1000));
  CHECK(bytes_read == 240'000);
  bool equal = true;
  for (std::size_t at = 0; at < got.size(); ++at) equal = equal && got[at] == expected_at(view, at);
  CHECK(equal);
}

TEST_CASE("views of large extent need little memory") {
  const std::int64_t far = std::int64_t{1} << 36;
  for (const StridedBytes& view :
       {StridedBytes{{2, 3, 4}, {far, 1, far / 8}, 3, 4}, StridedBytes{{5, 2}, {1, far}, 0, 8},
        StridedBytes{{4, 9'000}, {far, 1}, 0, 4}, StridedBytes{{3, 4'000'000}, {far, 6}, 0, 4}}) {
    std::size_t largest = 0;
    const ByteSource source = strided_source(view, formula(nullptr, &largest));
    const std::uint64_t bytes = std::min<std::uint64_t>(bytes_of(view), 100'000);
    for (const std::uint64_t from : {std::uint64_t{0}, bytes_of(view) - bytes}) {
      std::vector<std::byte> got(bytes);
      source(from, got);
      bool equal = true;
      for (std::uint64_t at = 0; at < bytes; ++at) equal = equal && got[at] == expected_at(view, from + at);
      CHECK(equal);
    }
    CHECK(largest <= std::size_t{1} << 20);
  }
}

TEST_CASE("a transposed view of large extent is read by strips, and only once") {
  // 3,000 x 1,500 and 3 x 3,000 x 1,500 floats whose rows are columns of the storage, 18 and 54 MB of 72 and more.
  const std::int64_t rows = 3'000, columns = 1'500, pitch = 12'000;
  for (const StridedBytes& view : {StridedBytes{{rows, columns}, {1, pitch}, 16, 4},
                                   StridedBytes{{3, rows, columns}, {pitch * columns, 1, pitch}, 16, 4},
                                   StridedBytes{{rows, 3, columns}, {2, pitch * columns, pitch}, 16, 4}}) {
    std::uint64_t bytes_read = 0, reads = 0, wrong = 0;
    std::size_t largest = 0;
    // Of the formula only what is compared is computed: the bytes at multiples of 4.
    const ByteSource read = [&](std::uint64_t offset, std::span<std::byte> out) {
      bytes_read += out.size();
      ++reads;
      largest = std::max(largest, out.size());
      for (std::size_t i = 0; i < out.size(); i += 4) out[i] = byte_at(offset + i);
    };
    const ByteSource source = strided_source(view, read);
    std::vector<std::byte> got(1'000'000);
    for (std::uint64_t at = 0; at < bytes_of(view); at += got.size()) {
      source(at, got);
      for (std::size_t i = 0; i < got.size(); i += 4 * 997) wrong += got[i] != expected_at(view, at + i);
    }
    CHECK(wrong == 0);
    CHECK(bytes_read <= 2 * bytes_of(view));
    CHECK(reads <= bytes_of(view) / 1'000);
    CHECK(largest <= std::size_t{1} << 20);
  }
}

TEST_CASE("random views of large extent give the same bytes from anywhere") {
  std::mt19937_64 random(11);
  const auto below = [&](std::uint64_t bound) { return random() % bound; };
  const std::int64_t steps[] = {0, 1, 3, 60, 5'000, std::int64_t{1} << 20, std::int64_t{1} << 33};
  for (int round = 0; round < 40; ++round) {
    StridedBytes view{{2}, {std::int64_t{1} << 34}, below(100), std::uint64_t{1} << below(4)};
    for (std::uint64_t axis = 1 + below(4); axis-- > 0;) {
      const auto at = static_cast<std::ptrdiff_t>(below(view.shape.size() + 1));
      view.shape.insert(view.shape.begin() + at, static_cast<std::int64_t>(1 + below(8)));
      view.strides.insert(view.strides.begin() + at, steps[below(7)]);
    }
    const std::uint64_t bytes = bytes_of(view);
    const ByteSource source = strided_source(view, formula());
    bool equal = true;
    for (int piece = 0; piece < 10; ++piece) {
      const std::uint64_t from = below(bytes);
      std::vector<std::byte> got(1 + below(std::min<std::uint64_t>(bytes - from, 3'000)));
      source(from, got);
      for (std::size_t i = 0; i < got.size(); ++i) equal = equal && got[i] == expected_at(view, from + i);
    }
    CHECK(equal);
  }
}

TEST_CASE("an empty view has no bytes, and ranges beyond a view are refused") {
  const ByteSource empty = strided_source({{3, 0}, {1, 1}, 0, 4}, formula());
  std::vector<std::byte> out(5);
  CHECK_NOTHROW(empty(0, std::span(out).first(0)));
  CHECK_THROWS_AS(empty(0, out), ShapeError);
  const ByteSource four = strided_source({{}, {}, 0, 4}, formula());
  CHECK_THROWS_AS(four(0, out), ShapeError);
  CHECK_THROWS_AS(four(~std::uint64_t{0}, out), ShapeError);
  CHECK_NOTHROW(four(3, std::span(out).first(1)));
}

}  // namespace
}  // namespace castor::formats
