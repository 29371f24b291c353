// First bytes. Delicate: a safetensors file begins with a length, which may spell anything, so it is tried first and by
// its '{' and its size; a zip's version and flags make an absurd length.
#include "formats/file_kind.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "formats/safetensors.h"

namespace castor::formats {
namespace {

constexpr std::size_t kStartBytes = 16;

// The magic number that torch.save wrote as a pickle of its own.
constexpr std::array<unsigned char, 15> kLegacyTorch{0x80, 0x02, 0x8A, 0x0A, 0x6C, 0xFC, 0x9C, 0x46,
                                                     0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19, 0x2E};
constexpr std::array<unsigned char, 4> kZip{'P', 'K', 0x03, 0x04};

template <std::size_t kCount>
bool starts_with(std::span<const std::byte> bytes, const std::array<unsigned char, kCount>& magic) {
  return bytes.size() >= kCount && std::memcmp(bytes.data(), magic.data(), kCount) == 0;
}

}  // namespace

std::string_view weights_file_kind_text(WeightsFileKind kind) {
  switch (kind) {
    case WeightsFileKind::safetensors:
      return "a safetensors file";
    case WeightsFileKind::zip:
      return "a zip archive, as torch.save writes";
    case WeightsFileKind::torch_legacy:
      return "a PyTorch file from before version 1.6";
    case WeightsFileKind::pickle:
      return "a bare pickle";
    case WeightsFileKind::unknown:
      break;
  }
  return "no format of weights that is known here";
}

WeightsFileKind weights_file_kind(std::span<const std::byte> start, std::uint64_t file_bytes) {
  std::uint64_t length = 0;
  if (start.size() > sizeof(length) && start[sizeof(length)] == std::byte{'{'}) {
    std::memcpy(&length, start.data(), sizeof(length));
    if (length <= kMaxSafetensorsHeaderBytes && length <= file_bytes - sizeof(length)) {
      return WeightsFileKind::safetensors;
    }
  }
  if (starts_with(start, kZip)) return WeightsFileKind::zip;
  if (starts_with(start, kLegacyTorch)) return WeightsFileKind::torch_legacy;
  const bool is_pickle =
      start.size() >= 2 && start[0] == std::byte{0x80} && start[1] >= std::byte{2} && start[1] <= std::byte{5};
  return is_pickle ? WeightsFileKind::pickle : WeightsFileKind::unknown;
}

WeightsFileKind weights_file_kind(const std::string& path, FileSystem& files) {
  const File file = File::open(path, OpenMode::read, files);
  std::array<std::byte, kStartBytes> start{};
  const std::size_t got = file.read_up_to(start, 0);
  return weights_file_kind(std::span(start).first(got), file.size());
}

}  // namespace castor::formats
