// A model of a few tensors for tests of checkpoints, cut over ranks at random: what goes in must come out.
#pragma once

#include <cstddef>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "formats/checkpoint_reader.h"
#include "formats/checkpoint_writer.h"

namespace castor::test {

/// Tensors by (role, name), with all their bytes.
struct CheckpointModel {
  struct Entry {
    std::string name, role;
    DType dtype = DType::f32;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;

    std::int64_t numel() const { return static_cast<std::int64_t>(bytes.size() / dtype_size(dtype)); }
  };
  std::vector<Entry> entries;

  void add(const std::string& name, const std::string& role, DType dtype, const std::vector<std::int64_t>& shape,
           std::mt19937_64& random) {
    std::size_t bytes = dtype_size(dtype);
    for (const std::int64_t size : shape) bytes *= static_cast<std::size_t>(size);
    Entry entry{name, role, dtype, shape, std::vector<std::byte>(bytes)};
    for (std::byte& byte : entry.bytes) byte = static_cast<std::byte>(random());
    entries.push_back(std::move(entry));
  }

  /// Scalars, an empty tensor, several dtypes, and states whose shape is not their parameter's.
  static CheckpointModel random(std::uint64_t seed, std::int64_t largest = 4000) {
    std::mt19937_64 random(seed);
    const auto size = [&] { return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(largest)) + 1; };
    CheckpointModel model;
    model.add("step_scale", "param", DType::f32, {}, random);
    model.add("nothing", "param", DType::f32, {0, 7}, random);
    model.add("count", "buffer", DType::i64, {1}, random);
    const int layers = static_cast<int>(random() % 3) + 1;
    for (int i = 0; i < layers; ++i) {
      const std::string name = "blocks." + std::to_string(i) + ".weight";
      const DType dtype = random() % 2 == 0 ? DType::f32 : DType::bf16;
      const std::vector<std::int64_t> shape = {size() / 50 + 1, 50};
      model.add(name, "param", dtype, shape, random);
      if (dtype == DType::bf16) model.add(name, "master", DType::f32, shape, random);
      model.add(name, "exp_avg", DType::f32, shape, random);
      model.add(name, "exp_avg_sq_row", DType::f32, {shape[0]}, random);
      model.add("blocks." + std::to_string(i) + ".bias", "param", dtype, {size() % 40}, random);
    }
    return model;
  }

  /// What rank `rank` of `world_size` holds if every tensor is cut at random places that all ranks agree on (by
  /// `seed`); some of the pieces are empty.
  std::vector<formats::TensorPiece> pieces_of(int rank, int world_size, std::uint64_t seed, bool optimizer) const {
    std::vector<formats::TensorPiece> pieces;
    for (const Entry& entry : entries) {
      std::mt19937_64 random(seed + std::hash<std::string>()(entry.role + "/" + entry.name));
      std::vector<std::int64_t> cuts = {0, entry.numel()};
      for (int i = 1; i < world_size; ++i) {
        cuts.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(entry.numel() + 1)));
      }
      std::sort(cuts.begin(), cuts.end());
      if ((entry.role != "param" && entry.role != "buffer") != optimizer) continue;
      const std::int64_t begin = cuts[static_cast<std::size_t>(rank)], end = cuts[static_cast<std::size_t>(rank) + 1];
      const std::size_t element = dtype_size(entry.dtype);
      pieces.push_back(
          {entry.name, entry.role, entry.dtype, entry.shape, begin, end - begin,
           std::span(entry.bytes)
               .subspan(static_cast<std::size_t>(begin) * element, static_cast<std::size_t>(end - begin) * element)});
    }
    return pieces;
  }

  /// One rank's files.
  formats::CheckpointPart write_part(const formats::SaveLocation& location, std::uint64_t seed, FileSystem& files,
                                     const StreamOptions& stream = {}) const {
    formats::CheckpointPart part;
    if (location.rank == 0) formats::write_text(part, "state", "json", "{\"iter\":7}", location, files);
    formats::write_pieces(part, "model", pieces_of(location.rank, location.world_size, seed, false), location, files,
                          stream);
    formats::write_pieces(part, "optimizer", pieces_of(location.rank, location.world_size, seed, true), location, files,
                          stream);
    return part;
  }

  /// A whole save by `world_size` ranks, one after the other.
  void save(const std::string& folder, int world_size, std::uint64_t save_number, std::uint64_t seed, FileSystem& files,
            const StreamOptions& stream = {}) const {
    make_directories(folder, files);
    const std::string suffix = formats::free_suffix(folder, files);
    std::vector<formats::CheckpointPart> parts;
    for (int rank = 0; rank < world_size; ++rank) {
      parts.push_back(write_part({folder, suffix, rank, world_size}, seed, files, stream));
    }
    formats::commit_checkpoint(folder, parts, {{"tied", "step_scale"}}, save_number, files);
  }

  /// True if the checkpoint holds exactly these tensors with these bytes.
  bool equals(const formats::Checkpoint& checkpoint) const {
    if (checkpoint.manifest().tensors.size() != entries.size()) return false;
    for (const Entry& entry : entries) {
      const formats::LogicalTensor* tensor = checkpoint.manifest().find(entry.role, entry.name);
      if (tensor == nullptr || tensor->dtype != entry.dtype || tensor->shape != entry.shape) return false;
      std::vector<std::byte> bytes(entry.bytes.size());
      checkpoint.read(*tensor, 0, bytes);
      if (bytes != entry.bytes) return false;
    }
    return checkpoint.read_text("state", "json") == "{\"iter\":7}";
  }
};

}  // namespace castor::test
