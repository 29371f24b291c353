// Ranges of logical tensors become ranges of files, read in file order and checked block by block.
#include "formats/checkpoint_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <tuple>

#include "core/base/digest.h"
#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/array_shape.h"

namespace castor::formats {
namespace {

std::string title_of(const LogicalTensor& tensor) { return cat(quote_name(tensor.name), " (", tensor.role, ")"); }

// Bytes [from, to) of a slice, as one request wants them.
struct Part {
  const LogicalTensor* tensor;
  const TensorSlice* slice;
  std::uint64_t slice_bytes;
  std::uint64_t from, to;
  std::uint64_t at;  // of byte `from` in the request's range
  const Checkpoint::Request* request;
};

// Whole blocks of a slice, bytes [from, to) of it, and the parts [first, last) of a list that lie in them.
struct Stretch {
  std::uint64_t from, to;
  std::size_t first, last;
};

// Called with the file range [begin, end) of a block whose digest is wrong.
using OnWrongBlock = std::function<void(const Part& part, std::uint64_t begin, std::uint64_t end)>;

// Follows the bytes of one stretch after the other and checks their blocks.
class BlockCheck {
 public:
  void take(const Part& part, std::uint64_t position, std::span<const std::byte> bytes, const OnWrongBlock& on_wrong) {
    while (!bytes.empty()) {
      const std::uint64_t block = position / kDigestBlockBytes;
      const std::uint64_t begin = block * kDigestBlockBytes;
      const std::uint64_t end = std::min(begin + kDigestBlockBytes, part.slice_bytes);
      const auto here = bytes.first(static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), end - position)));
      if (position == begin) hash_.reset();
      hash_.update(here);
      if (position + here.size() == end && hash_.digest() != part.slice->digests[static_cast<std::size_t>(block)]) {
        on_wrong(part, part.slice->begin + begin, part.slice->begin + end);
      }
      position += here.size();
      bytes = bytes.subspan(here.size());
    }
  }

 private:
  Xxh3Stream hash_;
};

// The parts of slices that a request covers.
void add_parts(const Checkpoint::Request& request, std::map<std::uint32_t, std::vector<Part>>& by_file) {
  const LogicalTensor& tensor = *request.tensor;
  if (request.offset < 0 || request.count < 0 || request.offset > tensor.numel() ||
      request.count > tensor.numel() - request.offset) {
    throw ShapeError(cat("read checkpoint: elements [", request.offset, ", ", request.offset, " + ", request.count,
                         ") do not lie within tensor ", title_of(tensor), " ", tensor.dtype, shape_text(tensor.shape)));
  }
  const std::uint64_t element = dtype_size(tensor.dtype);
  const std::int64_t end = request.offset + request.count;
  auto slice = std::upper_bound(tensor.slices.begin(), tensor.slices.end(), request.offset,
                                [](std::int64_t offset, const TensorSlice& s) { return offset < s.offset + s.count; });
  for (; slice != tensor.slices.end() && slice->offset < end; ++slice) {
    const std::int64_t from = std::max(request.offset, slice->offset), to = std::min(end, slice->offset + slice->count);
    if (from >= to) continue;
    by_file[slice->file].push_back({&tensor, &*slice, static_cast<std::uint64_t>(slice->count) * element,
                                    static_cast<std::uint64_t>(from - slice->offset) * element,
                                    static_cast<std::uint64_t>(to - slice->offset) * element,
                                    static_cast<std::uint64_t>(from - request.offset) * element, &request});
  }
}

// The blocks that sorted parts of one file need, each once however many parts want something of it.
std::vector<Stretch> stretches_of(const std::vector<Part>& parts) {
  std::vector<Stretch> stretches;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const std::uint64_t from = part.from / kDigestBlockBytes * kDigestBlockBytes;
    const std::uint64_t blocks = (part.to + kDigestBlockBytes - 1) / kDigestBlockBytes;
    const std::uint64_t to = std::min(blocks * kDigestBlockBytes, part.slice_bytes);
    const bool goes_on = i > 0 && parts[i - 1].slice == part.slice && from < stretches.back().to;
    if (goes_on) {
      stretches.back().to = std::max(stretches.back().to, to);
      stretches.back().last = i + 1;
    } else {
      stretches.push_back({from, to, i, i + 1});
    }
  }
  return stretches;
}

// Hands the bytes from `position` of a stretch on to those of its parts that want some of them.
void hand_on(const std::vector<Part>& parts, Stretch& stretch, std::uint64_t position,
             std::span<const std::byte> bytes) {
  const std::uint64_t end = position + bytes.size();
  while (stretch.first < stretch.last && parts[stretch.first].to <= position) ++stretch.first;
  for (std::size_t i = stretch.first; i < stretch.last && parts[i].from < end; ++i) {
    const Part& part = parts[i];
    const std::uint64_t from = std::max(part.from, position), to = std::min(part.to, end);
    if (from >= to || part.request == nullptr || !part.request->sink) continue;
    part.request->sink(part.at + (from - part.from),
                       bytes.subspan(static_cast<std::size_t>(from - position), static_cast<std::size_t>(to - from)));
  }
}

// Reads parts of one file, in the order of the file and with the rest of their blocks. Returns the bytes fetched.
std::uint64_t read_parts(StreamReader& reader, std::vector<Part>& parts, const OnWrongBlock& on_wrong,
                         const std::function<void(std::uint64_t bytes)>& on_bytes = {}) {
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return std::tuple(a.slice->begin, a.from, a.to) < std::tuple(b.slice->begin, b.from, b.to);
  });
  std::vector<Stretch> stretches = stretches_of(parts);
  std::vector<FileRange> ranges;
  ranges.reserve(stretches.size());
  for (const Stretch& stretch : stretches) {
    ranges.push_back({parts[stretch.first].slice->begin + stretch.from, stretch.to - stretch.from});
  }
  const std::uint64_t before = reader.bytes_asked();
  BlockCheck check;
  reader.read(ranges, [&](std::size_t range, std::uint64_t at, std::span<const std::byte> bytes) {
    Stretch& stretch = stretches[range];
    check.take(parts[stretch.last - 1], stretch.from + at, bytes, on_wrong);
    hand_on(parts, stretch, stretch.from + at, bytes);
    if (on_bytes) on_bytes(bytes.size());
  });
  return reader.bytes_asked() - before;
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& folder, FileSystem& files) {
  const std::string path = join_path(folder, kManifestName);
  if (!exists(path, files)) {
    throw IoError(cat("open checkpoint ", quote_name(folder, 4096), ": there is no ", kManifestName,
                      is_directory(folder, files) ? " in it: the save was not completed, or this is no checkpoint"
                                                  : ", and no such folder"),
                  path, ENOENT);
  }
  return {folder, parse_manifest(read_text_file(path, kMaxManifestBytes, files), path), files};
}

std::vector<Damage> Checkpoint::missing_files() const {
  std::vector<Damage> missing;
  for (const CheckpointFile& file : manifest_.files) {
    const std::string path = join_path(folder_, file.name);
    try {
      const std::uint64_t bytes = file_size(path, *files_);
      if (bytes != file.bytes) missing.push_back({file.name, "", cat("has ", bytes, " bytes, expected ", file.bytes)});
    } catch (const IoError& error) {
      missing.push_back({file.name, "", error.code == ENOENT ? "is missing" : error.what()});
    }
  }
  return missing;
}

void Checkpoint::read(std::span<const Request> requests, const StreamOptions& stream) const {
  std::map<std::uint32_t, std::vector<Part>> by_file;
  for (const Request& request : requests) add_parts(request, by_file);
  for (auto& [number, parts] : by_file) {
    const CheckpointFile& file = manifest_.files[number];
    const std::string path = join_path(folder_, file.name);
    StreamReader reader(path, stream, *files_);
    if (reader.size() != file.bytes) {
      throw FormatError(cat("checkpoint file ", quote_name(path, 4096), ": expected ", file.bytes, " bytes, it has ",
                            reader.size(), ": it was replaced or cut; use another checkpoint"),
                        path, std::min(reader.size(), file.bytes));
    }
    bytes_read_ += read_parts(reader, parts, [&path](const Part& part, std::uint64_t begin, std::uint64_t end) {
      throw FormatError(
          cat("checkpoint file ", quote_name(path, 4096), ": tensor ", title_of(*part.tensor), ": bytes [", begin, ", ",
              end, ") have another digest: the file is damaged; use another checkpoint"),
          path, begin);
    });
  }
}

void Checkpoint::read(const LogicalTensor& tensor, std::int64_t offset, std::span<std::byte> out) const {
  const Request request{&tensor, offset, static_cast<std::int64_t>(out.size() / dtype_size(tensor.dtype)),
                        [out](std::uint64_t at, std::span<const std::byte> bytes) {
                          std::memcpy(out.data() + at, bytes.data(), bytes.size());
                        }};
  read(std::span(&request, 1));
}

bool Checkpoint::has_text(std::string_view stem, std::string_view extension) const {
  return std::any_of(manifest_.files.begin(), manifest_.files.end(), [&](const CheckpointFile& file) {
    return file.name == cat(stem, ".", extension) || file.name == cat(stem, ".2.", extension);
  });
}

std::string Checkpoint::read_text(std::string_view stem, std::string_view extension) const {
  for (const CheckpointFile& file : manifest_.files) {
    if (file.name != cat(stem, ".", extension) && file.name != cat(stem, ".2.", extension)) continue;
    const std::string path = join_path(folder_, file.name);
    std::string text = read_text_file(path, file.bytes, *files_);
    bytes_read_ += text.size();
    if (text.size() != file.bytes || file.head_bytes != file.bytes || xxh3(as_byte_span(text)) != file.head_digest) {
      throw FormatError(cat("checkpoint file ", quote_name(path, 4096),
                            ": its digest does not match: it is damaged or was edited; use another checkpoint"),
                        path, 0);
    }
    return text;
  }
  throw FormatError(cat("checkpoint ", quote_name(folder_, 4096), ": has no ", stem, ".", extension), folder_, 0);
}

std::vector<Damage> Checkpoint::verify(const std::function<void(std::uint64_t bytes)>& progress) const {
  std::vector<Damage> damage = missing_files();
  std::map<std::uint32_t, std::vector<Part>> by_file;
  for (const LogicalTensor& tensor : manifest_.tensors) {
    const std::uint64_t element = dtype_size(tensor.dtype);
    for (const TensorSlice& slice : tensor.slices) {
      const std::uint64_t bytes = static_cast<std::uint64_t>(slice.count) * element;
      by_file[slice.file].push_back({&tensor, &slice, bytes, 0, bytes, 0, nullptr});
    }
  }
  std::uint64_t done = manifest_.manifest_bytes;
  for (std::uint32_t number = 0; number < manifest_.files.size(); ++number) {
    const CheckpointFile& file = manifest_.files[number];
    const auto is_this = [&file](const Damage& found) { return found.file == file.name; };
    if (std::any_of(damage.begin(), damage.end(), is_this)) continue;
    try {
      StreamReader reader(join_path(folder_, file.name), {}, *files_);
      Xxh3Stream head;
      const FileRange head_range{0, file.head_bytes};
      reader.read(std::span(&head_range, 1),
                  [&](std::size_t, std::uint64_t, std::span<const std::byte> bytes) { head.update(bytes); });
      if (head.digest() != file.head_digest) {
        damage.push_back({file.name, "", cat("bytes [0, ", file.head_bytes, ") have another digest")});
      }
      std::vector<Part>& parts = by_file[number];
      read_parts(
          reader, parts,
          [&](const Part& part, std::uint64_t begin, std::uint64_t end) {
            damage.push_back(
                {file.name, title_of(*part.tensor), cat("bytes [", begin, ", ", end, ") have another digest")});
          },
          [&](std::uint64_t bytes) {
            if (progress) progress(done += bytes);
          });
      done += file.head_bytes;
    } catch (const IoError& error) {
      damage.push_back({file.name, "", error.what()});
    }
    bytes_read_ += file.bytes;
    if (progress) progress(done);
  }
  return damage;
}

std::uint64_t Checkpoint::total_bytes() const {
  std::uint64_t total = manifest_.manifest_bytes;
  for (const CheckpointFile& file : manifest_.files) total += file.bytes;
  return total;
}

}  // namespace castor::formats
