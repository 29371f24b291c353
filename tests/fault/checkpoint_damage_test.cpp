// Damage of a small checkpoint, exhaustively: every bit of every file flipped, every file cut at every byte, longer,
// missing or taken from elsewhere. Each is refused when the checkpoint is opened or reported by verify.
#include <cstdio>
#include <map>
#include <random>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/file_memory.h"
#include "formats/checkpoint_list.h"
#include "tests/support/checkpoint_model.h"

namespace castor {
namespace {

using formats::Checkpoint;
using test::CheckpointModel;

constexpr const char* kFolder = "/run/iter_1";

struct Damages {
  std::size_t done = 0, refused = 0, reported = 0, missed = 0;
};

// A small checkpoint of two ranks, and the texts of its files.
struct Victim {
  MemoryFileSystem files;
  CheckpointModel model;
  std::map<std::string, std::string> texts;

  explicit Victim(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    model.add("w", "param", DType::bf16, {5, 3}, random);
    model.add("w", "exp_avg", DType::f32, {5}, random);
    model.add("step_scale", "param", DType::f32, {}, random);
    model.add("nothing", "param", DType::f32, {0}, random);
    model.save(kFolder, 2, 1, 3, files);
    for (const DirectoryEntry& entry : list_directory(kFolder, files)) {
      texts[entry.name] = read_text_file(join_path(kFolder, entry.name), formats::kMaxManifestBytes, files);
    }
  }

  void put(const std::string& name, std::string_view text) {
    File file = File::open(join_path(kFolder, name), OpenMode::create, files);
    file.write_exact(as_byte_span(text), 0);
    file.sync();  // a file in memory remembers what is un-synced
  }

  // Whether it was noticed that `name` is not what it was.
  bool noticed(const std::string& name, Damages& damages) {
    ++damages.done;
    try {
      const auto found = Checkpoint::open(kFolder, files).verify();
      for (const formats::Damage& damage : found) {
        if (damage.file == name) {
          ++damages.reported;
          return true;
        }
      }
    } catch (const FormatError& error) {
      if (error.file == join_path(kFolder, name)) {
        ++damages.refused;
        return true;
      }
    } catch (const IoError& error) {
      if (error.path == join_path(kFolder, name)) {
        ++damages.refused;
        return true;
      }
    }
    ++damages.missed;
    return false;
  }
};

TEST_CASE("any flipped bit, cut or addition in any file of a checkpoint is refused or reported") {
  Victim victim(5);
  CHECK(victim.model.equals(Checkpoint::open(kFolder, victim.files)));
  CHECK(victim.texts.size() == 6);  // manifest, state and two files of each of two ranks
  Damages flips, lengths;
  std::size_t bytes = 0;
  for (const auto& [name, text] : victim.texts) {
    bytes += text.size();
    File file = File::open(join_path(kFolder, name), OpenMode::append, victim.files);
    for (std::size_t at = 0; at < text.size(); ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        const std::byte flipped = static_cast<std::byte>(text[at] ^ (1 << bit));
        file.write_exact(std::span(&flipped, 1), at);
        if (!victim.noticed(name, flips)) FAIL_CHECK(name, ": bit ", bit, " of byte ", at);
      }
      const std::byte original = static_cast<std::byte>(text[at]);
      file.write_exact(std::span(&original, 1), at);
      if (at % 64 == 0) file.sync();
    }
    for (std::size_t cut = 0; cut < text.size(); ++cut) {
      victim.put(name, std::string_view(text).substr(0, cut));
      if (!victim.noticed(name, lengths)) FAIL_CHECK(name, ": cut to ", cut, " bytes");
    }
    for (const std::size_t more : {1, 8, 4096}) {
      victim.put(name, text + std::string(more, '\0'));
      if (!victim.noticed(name, lengths)) FAIL_CHECK(name, ": longer by ", more, " bytes");
      victim.put(name, text + text.substr(0, more));
      if (!victim.noticed(name, lengths)) FAIL_CHECK(name, ": longer by up to ", more, " of its own bytes");
    }
    victim.put(name, text);
  }
  CHECK(victim.model.equals(Checkpoint::open(kFolder, victim.files)));
  CHECK(Checkpoint::open(kFolder, victim.files).verify().empty());
  CHECK(flips.done == bytes * 8);
  std::printf(
      "damage: %zu bytes in %zu files; flipped bits: %zu, refused %zu, reported %zu, missed %zu; cuts and "
      "additions: %zu, refused %zu, reported %zu, missed %zu\n",
      bytes, victim.texts.size(), flips.done, flips.refused, flips.reported, flips.missed, lengths.done,
      lengths.refused, lengths.reported, lengths.missed);
}

TEST_CASE("a file that is missing, replaced by another or a folder is refused or reported") {
  Victim victim(5);
  Victim other(6);
  Damages damages;
  for (const auto& [name, text] : victim.texts) {
    remove_file(join_path(kFolder, name), victim.files);
    if (name != formats::kManifestName) {
      CHECK(victim.noticed(name, damages));
    } else {
      CHECK_THROWS_AS(Checkpoint::open(kFolder, victim.files), IoError);
    }
    make_directories(join_path(kFolder, name), victim.files);
    CHECK(victim.noticed(name, damages));
    remove_tree(join_path(kFolder, name), victim.files);
    for (const auto& [source, replacement] : victim.texts) {
      if (source == name) continue;
      victim.put(name, replacement);
      CHECK(victim.noticed(name, damages));
    }
    // The same file of another checkpoint fits by its size; only a digest can tell.
    if (name != formats::kManifestName && other.texts.at(name) != text) {
      victim.put(name, other.texts.at(name));
      CHECK(victim.noticed(name, damages));
    }
    victim.put(name, text);
  }
  // Two files that are each other's.
  for (const auto& [a, text_a] : victim.texts) {
    for (const auto& [b, text_b] : victim.texts) {
      if (a >= b) continue;
      victim.put(a, text_b);
      victim.put(b, text_a);
      CHECK((victim.noticed(a, damages) || victim.noticed(b, damages)));
      victim.put(a, text_a);
      victim.put(b, text_b);
    }
  }
  // The manifest of another checkpoint stands over these files.
  victim.put(formats::kManifestName, other.texts.at(formats::kManifestName));
  CHECK(!Checkpoint::open(kFolder, victim.files).verify().empty());
  std::printf("damage: %zu missing, replaced and swapped files, %zu refused, %zu reported\n", damages.done,
              damages.refused, damages.reported);
}

}  // namespace
}  // namespace castor
