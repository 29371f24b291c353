// Data files through a stream that hashes what it writes, and the commit.
#include "formats/checkpoint_writer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "core/base/digest.h"
#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/array_shape.h"
#include "formats/manifest_check.h"

namespace castor::formats {
namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw ShapeError(cat("save ", quote_name(path, 4096), ": ", what));
}

std::uint64_t bytes_of(const TensorPiece& piece) {
  return static_cast<std::uint64_t>(piece.count) * dtype_size(piece.dtype);
}

std::string name_in_file(const TensorPiece& piece, bool is_whole) {
  const bool is_weight = piece.role == kParamRole || piece.role == kBufferRole;
  const std::string name = is_weight ? piece.name : piece.role + "/" + piece.name;
  return is_whole ? name : cat(name, "[", piece.offset, ":", piece.offset + piece.count, "]");
}

// The elements of the piece's whole tensor.
std::int64_t numel_of(const TensorPiece& piece, const std::string& path) {
  const std::optional<std::uint64_t> bytes = bytes_of_shape(piece.shape, piece.dtype);
  if (!bytes || std::any_of(piece.shape.begin(), piece.shape.end(), [](std::int64_t size) { return size < 0; })) {
    refuse(path, cat("tensor ", quote_name(piece.name), ": no tensor has the shape ", shape_text(piece.shape)));
  }
  return static_cast<std::int64_t>(*bytes / dtype_size(piece.dtype));
}

// Writes one piece and returns the digests of its blocks. Arrays begin at multiples of their element size and the
// stream's buffers end at larger ones, so every span filled here holds whole elements.
std::vector<std::uint64_t> write_piece(StreamWriter& writer, const TensorPiece& piece) {
  const std::uint64_t total = bytes_of(piece);
  std::vector<std::uint64_t> digests;
  digests.reserve(static_cast<std::size_t>((total + kDigestBlockBytes - 1) / kDigestBlockBytes));
  Xxh3Stream block;
  for (std::uint64_t done = 0; done < total;) {
    const std::uint64_t block_left = kDigestBlockBytes - done % kDigestBlockBytes;
    std::span<std::byte> room = writer.space();
    room = room.first(static_cast<std::size_t>(std::min<std::uint64_t>({room.size(), total - done, block_left})));
    if (const auto* bytes = std::get_if<std::span<const std::byte>>(&piece.data)) {
      std::memcpy(room.data(), bytes->data() + done, room.size());
    } else {
      std::get<ByteSource>(piece.data)(done, room);
    }
    block.update(room);
    done += room.size();
    writer.advance(room.size());
    if (done % kDigestBlockBytes == 0 || done == total) {
      digests.push_back(block.digest());
      block.reset();
    }
  }
  return digests;
}

void check_piece(const TensorPiece& piece, const std::string& path) {
  const std::int64_t numel = numel_of(piece, path);
  if (piece.offset < 0 || piece.count < 0 || piece.offset > numel || piece.count > numel - piece.offset) {
    refuse(path, cat("tensor ", quote_name(piece.name), ": elements [", piece.offset, ", ", piece.offset, " + ",
                     piece.count, ") do not lie within ", piece.dtype, shape_text(piece.shape)));
  }
  if (piece.count == 0) return;
  const auto* bytes = std::get_if<std::span<const std::byte>>(&piece.data);
  if (bytes != nullptr && bytes->size() != bytes_of(piece)) {
    refuse(path, cat("tensor ", quote_name(piece.name), ": ", piece.count, " elements take ", bytes_of(piece),
                     " bytes, got ", bytes->size()));
  }
  if (bytes == nullptr && !std::get<ByteSource>(piece.data)) {
    refuse(path, cat("tensor ", quote_name(piece.name), ": its ByteSource is empty"));
  }
}

}  // namespace

std::string free_suffix(const std::string& folder, FileSystem& files) {
  const std::string path = join_path(folder, kManifestName);
  if (!exists(path, files)) return "";
  // A program that ended before its last sync may have left it un-synced. If it is lost after this save has begun, the
  // one before it counts again, whose files this save would be writing over.
  sync_directory(folder, files);
  try {
    const Manifest manifest = parse_manifest(read_text_file(path, kMaxManifestBytes, files), path);
    const auto has_suffix = [](const CheckpointFile& file) { return file.name.find(".2.") != std::string::npos; };
    return std::any_of(manifest.files.begin(), manifest.files.end(), has_suffix) ? "" : "2";
  } catch (const FormatError&) {
    return "";  // no checkpoint: nothing refers to the files that are there
  }
}

std::string data_file_name(std::string_view stem, const SaveLocation& location) {
  std::string name(stem);
  if (location.world_size > 1) {
    char ranks[40];
    std::snprintf(ranks, sizeof ranks, "-%05d-of-%05d", location.rank + 1, location.world_size);
    name += ranks;
  }
  return name + (location.suffix.empty() ? "" : "." + location.suffix) + ".safetensors";
}

std::optional<std::string> stem_of_data_file(std::string_view name) {
  const auto cut = [&name](std::string_view end) {
    if (!name.ends_with(end)) return false;
    name.remove_suffix(end.size());
    return true;
  };
  if (!cut(".safetensors")) return std::nullopt;
  cut(".2");
  constexpr std::string_view kRanks = "-00000-of-00000";
  const std::string_view ranks = name.substr(name.size() - std::min(name.size(), kRanks.size()));
  const bool has_ranks = std::equal(ranks.begin(), ranks.end(), kRanks.begin(), kRanks.end(),
                                    [](char c, char form) { return form == '0' ? c >= '0' && c <= '9' : c == form; });
  if (has_ranks) name.remove_suffix(kRanks.size());
  if (name.empty()) return std::nullopt;
  return std::string(name);
}

void write_pieces(CheckpointPart& part, std::string_view stem, std::span<const TensorPiece> pieces,
                  const SaveLocation& location, FileSystem& files, const StreamOptions& stream) {
  const std::string name = data_file_name(stem, location);
  const std::string path = join_path(location.folder, name);
  std::vector<SafetensorsTensor> arrays;
  std::vector<const TensorPiece*> written;
  for (const TensorPiece& piece : pieces) {
    check_piece(piece, path);
    if (piece.count == 0) part.tensors.push_back({piece.name, piece.role, piece.dtype, piece.shape, {}});
    // A tensor without elements has no slice; other tools find it in the file all the same.
    const bool is_whole = piece.count == numel_of(piece, path);
    if (piece.count == 0 && !is_whole) continue;
    arrays.push_back({name_in_file(piece, is_whole), piece.dtype,
                      is_whole ? piece.shape : std::vector<std::int64_t>{piece.count}, std::span<const std::byte>()});
    written.push_back(&piece);
  }
  if (arrays.empty()) return;

  SafetensorsOptions options;
  options.metadata = {{"format", "pt"}};
  const SafetensorsPlan plan = plan_safetensors(arrays, options, path);
  StreamWriter writer(path, stream, files);
  writer.expect_bytes(plan.header.file_bytes);
  writer.write(plan.header_bytes);
  const auto number = static_cast<std::uint32_t>(part.files.size());
  for (std::size_t i = 0; i < plan.sources.size(); ++i) {
    const TensorPiece& piece = *written[plan.sources[i]];
    if (piece.count == 0) continue;
    TensorSlice slice{number, plan.header.tensors[i].begin, piece.offset, piece.count, write_piece(writer, piece)};
    part.tensors.push_back({piece.name, piece.role, piece.dtype, piece.shape, {std::move(slice)}});
  }
  writer.finish();
  part.files.push_back({name, plan.header.file_bytes, plan.header.data_begin, xxh3(as_byte_span(plan.header_bytes))});
}

void write_text(CheckpointPart& part, std::string_view stem, std::string_view extension, std::string_view contents,
                const SaveLocation& location, FileSystem& files) {
  const std::string name = cat(stem, location.suffix.empty() ? "" : ".", location.suffix, ".", extension);
  File file = File::open(join_path(location.folder, name), OpenMode::create, files);
  file.write_exact(as_byte_span(contents), 0);
  file.sync();
  file.close();
  part.files.push_back({name, contents.size(), contents.size(), xxh3(as_byte_span(contents))});
}

std::string part_text(const CheckpointPart& part) {
  Manifest manifest;
  manifest.files = part.files;
  manifest.tensors = part.tensors;
  return unchecked_manifest_text(manifest);
}

CheckpointPart parse_part(std::string_view text) {
  Manifest manifest = unchecked_manifest(text, "part of a checkpoint");
  return {std::move(manifest.files), std::move(manifest.tensors)};
}

void commit_checkpoint(const std::string& folder, std::span<const CheckpointPart> parts,
                       const std::map<std::string, std::string>& aliases, std::uint64_t save_number,
                       FileSystem& files) {
  const std::string path = join_path(folder, kManifestName);
  Manifest manifest;
  manifest.save_number = save_number;
  manifest.aliases = aliases;
  std::map<std::pair<std::string, std::string>, LogicalTensor> merged;
  for (const CheckpointPart& part : parts) {
    const auto first_file = static_cast<std::uint32_t>(manifest.files.size());
    manifest.files.append(part.files);
    for (const LogicalTensor& tensor : part.tensors) {
      const auto [place, is_new] = merged.try_emplace({tensor.role, tensor.name}, tensor.name, tensor.role,
                                                      tensor.dtype, tensor.shape, SegmentedList<TensorSlice>());
      LogicalTensor& whole = place->second;
      if (!is_new && (whole.dtype != tensor.dtype || whole.shape != tensor.shape)) {
        throw FormatError(cat("save ", quote_name(path, 4096), ": tensor ", quote_name(tensor.name), " (", tensor.role,
                              ") is ", whole.dtype, shape_text(whole.shape), " on one rank and ", tensor.dtype,
                              shape_text(tensor.shape), " on another"),
                          path, 0);
      }
      for (TensorSlice slice : tensor.slices) {
        slice.file += first_file;
        whole.slices.push_back(std::move(slice));
      }
    }
  }
  for (auto& [key, tensor] : merged) manifest.tensors.push_back(std::move(tensor));
  manifest.sort();
  const std::string text = manifest_text(manifest, path);

  std::set<std::string> replaced;
  if (exists(path, files)) {
    try {
      for (const CheckpointFile& file : parse_manifest(read_text_file(path, kMaxManifestBytes, files), path).files) {
        replaced.insert(file.name);
      }
    } catch (const FormatError&) {
    }
  }
  sync_directory(folder, files);
  write_file_atomically(path, text, files);
  sync_directory(directory_of(folder), files);

  std::set<std::string> kept, stems;
  for (const CheckpointFile& file : manifest.files) kept.insert(file.name);
  for (const auto* names : {&kept, &replaced}) {
    for (const std::string& name : *names) {
      if (const auto stem = stem_of_data_file(name)) stems.insert(*stem);
    }
  }
  std::vector<DirectoryEntry> entries;
  files.list(folder, entries);
  for (const DirectoryEntry& entry : entries) {
    if (entry.kind != FileKind::file) continue;
    const auto stem = stem_of_data_file(entry.name);
    if (is_temporary_name(entry.name) || (stem && stems.contains(*stem))) replaced.insert(entry.name);
  }
  // Best effort: the checkpoint stands, and what cannot be removed now the next save will try again.
  for (const std::string& name : replaced) {
    if (!kept.contains(name)) files.unlink(join_path(folder, name));
  }
}

}  // namespace castor::formats
