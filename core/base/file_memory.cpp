// The two lives of files and folders in memory.
//
// Delicate: pending changes are kept in order and applied as a subset in that order, so that a kept later write lies
// over a kept earlier one. A rename inside one folder is one change (journals keep it whole); across folders it is two.
#include "core/base/file_memory.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <new>
#include <random>
#include <string_view>
#include <utility>

namespace castor {
namespace {

constexpr std::uint64_t kSectorBytes = 512;
constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 62;

// An un-synced change of a file's contents: a write at `offset`, or, with `truncate`, the emptying of the file.
struct PendingWrite {
  bool truncate = false;
  std::uint64_t offset = 0;
  std::vector<std::byte> bytes;
};

void write_into(std::vector<std::byte>& contents, std::span<const std::byte> bytes, std::uint64_t offset) {
  if (bytes.empty()) return;
  if (contents.size() < offset + bytes.size()) contents.resize(offset + bytes.size());
  std::memcpy(contents.data() + offset, bytes.data(), bytes.size());
}

std::vector<std::string> split(const std::string& path) {
  std::vector<std::string> parts;
  std::size_t at = 0;
  while (at <= path.size()) {
    const std::size_t slash = std::min(path.find('/', at), path.size());
    std::string part = path.substr(at, slash - at);
    at = slash + 1;
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      if (!parts.empty()) parts.pop_back();
      continue;
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

// Decides which un-synced changes a power loss lets through.
class Survival {
 public:
  Survival(Unsynced unsynced, std::uint64_t seed) : unsynced_(unsynced), random_(seed) {}
  bool change_survives() {
    if (unsynced_ == Unsynced::dropped) return false;
    if (unsynced_ == Unsynced::kept) return true;
    return (random_() >> 32 & 1) != 0;
  }
  bool torn() const { return unsynced_ == Unsynced::torn; }

 private:
  Unsynced unsynced_;
  std::mt19937_64 random_;
};

void apply(const PendingWrite& write, Survival& survival, std::vector<std::byte>& contents) {
  if (write.truncate || !survival.torn()) {
    if (!survival.change_survives()) return;
    if (write.truncate) {
      contents.clear();
    } else {
      write_into(contents, write.bytes, write.offset);
    }
    return;
  }
  const std::uint64_t end = write.offset + write.bytes.size();
  // Delayed allocation: the new size may reach the disk before the bytes, which then read as zeros.
  if (survival.change_survives() && contents.size() < end) contents.resize(end);
  for (std::uint64_t at = write.offset; at < end;) {
    const std::uint64_t sector_end = std::min(end, (at / kSectorBytes + 1) * kSectorBytes);
    const auto sector = std::span(write.bytes).subspan(at - write.offset, sector_end - at);
    if (survival.change_survives()) write_into(contents, sector, at);
    at = sector_end;
  }
}

}  // namespace

// A file or a folder. `synced*` is what a power loss leaves for certain, `pending*` what happened since.
struct MemoryFileSystem::Node {
  using Names = std::map<std::string, std::shared_ptr<Node>>;
  // Names that change together; null stands for removal.
  using NameChange = std::vector<std::pair<std::string, std::shared_ptr<Node>>>;

  explicit Node(FileKind node_kind) : kind(node_kind) {}

  FileKind kind;
  std::vector<std::byte> contents;
  std::vector<std::byte> synced_contents;
  std::vector<PendingWrite> pending_writes;
  Names names;
  Names synced_names;
  std::vector<NameChange> pending_names;

  static void apply(const NameChange& change, Names& names) {
    for (const auto& [name, node] : change) {
      if (node == nullptr) {
        names.erase(name);
      } else {
        names[name] = node;
      }
    }
  }

  void change_names(NameChange change) {
    apply(change, names);
    pending_names.push_back(std::move(change));
  }

  std::uint64_t used_bytes() const {
    std::uint64_t total = contents.size();
    for (const auto& [name, node] : names) total += node->used_bytes();
    return total;
  }

  using Survivors = std::map<const Node*, std::shared_ptr<Node>>;
  // A node may have two names after half a rename: `survivors` keeps it one.
  std::shared_ptr<Node> after_power_loss(Survival& survival, Survivors& survivors) const {
    std::shared_ptr<Node>& copy = survivors[this];
    if (copy != nullptr) return copy;
    copy = std::make_shared<Node>(kind);
    std::shared_ptr<Node> result = copy;  // `survivors` may move its entries below
    result->contents = synced_contents;
    for (const PendingWrite& write : pending_writes) castor::apply(write, survival, result->contents);
    result->synced_contents = result->contents;
    Names left = synced_names;
    for (const NameChange& change : pending_names) {
      if (survival.change_survives()) apply(change, left);
    }
    for (const auto& [name, node] : left) result->names[name] = node->after_power_loss(survival, survivors);
    result->synced_names = result->names;
    return result;
  }
};

// Where a path leads: the folder that holds (or would hold) its last name, and the node there if there is one.
struct MemoryFileSystem::Place {
  int error = 0;  // of the way to the folder
  std::shared_ptr<Node> directory;
  std::string name;
  std::shared_ptr<Node> node;
};

class MemoryFile : public OpenFile {
 public:
  MemoryFile(MemoryFileSystem& files, std::shared_ptr<MemoryFileSystem::Node> node, bool writable)
      : files_(files), node_(std::move(node)), writable_(writable) {}

  IoResult read(std::span<std::byte> out, std::uint64_t offset) override {
    const std::lock_guard lock(files_.mutex_);
    const auto& contents = node_->contents;
    if (offset >= contents.size() || out.empty()) return {};
    const std::size_t count = std::min<std::uint64_t>(out.size(), contents.size() - offset);
    std::memcpy(out.data(), contents.data() + offset, count);
    return {count, 0};
  }

  IoResult write(std::span<const std::byte> data, std::uint64_t offset) override {
    const std::lock_guard lock(files_.mutex_);
    if (!writable_) return {0, EBADF};
    if (data.empty()) return {};
    const std::uint64_t reach = node_->contents.size() + files_.room();  // the end a write may grow the file to
    if (offset >= reach) return {0, ENOSPC};
    data = data.first(std::min<std::uint64_t>(data.size(), reach - offset));
    write_into(node_->contents, data, offset);
    node_->pending_writes.push_back({false, offset, {data.begin(), data.end()}});
    return {data.size(), 0};
  }

  int sync() override {
    const std::lock_guard lock(files_.mutex_);
    node_->synced_contents = node_->contents;
    node_->pending_writes.clear();
    return 0;
  }

  IoResult size() override {
    const std::lock_guard lock(files_.mutex_);
    return {node_->contents.size(), 0};
  }

  int map(std::uint64_t bytes, std::shared_ptr<const std::byte>& view) override {
    constexpr auto kPage = std::align_val_t{4096};
    const std::lock_guard lock(files_.mutex_);
    if (bytes == 0 || bytes > node_->contents.size()) return EINVAL;
    auto* copy = static_cast<std::byte*>(::operator new(bytes, kPage));
    std::memcpy(copy, node_->contents.data(), bytes);
    view.reset(copy, [](const std::byte* start) { ::operator delete(const_cast<std::byte*>(start), kPage); });
    return 0;
  }

  int close() override { return 0; }

 private:
  MemoryFileSystem& files_;
  std::shared_ptr<MemoryFileSystem::Node> node_;
  bool writable_;
};

MemoryFileSystem::MemoryFileSystem() : root_(std::make_shared<Node>(FileKind::directory)) {}
MemoryFileSystem::~MemoryFileSystem() = default;

void MemoryFileSystem::set_capacity(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  capacity_ = bytes;
}

std::unique_ptr<MemoryFileSystem> MemoryFileSystem::after_power_loss(Unsynced unsynced, std::uint64_t seed) const {
  const std::lock_guard lock(mutex_);
  Survival survival(unsynced, seed);
  Node::Survivors survivors;
  auto result = std::make_unique<MemoryFileSystem>();
  result->root_ = root_->after_power_loss(survival, survivors);
  result->capacity_ = capacity_;
  return result;
}

MemoryFileSystem::Place MemoryFileSystem::locate(const std::string& path) const {
  if (path.empty()) return {ENOENT, nullptr, {}, nullptr};
  const std::vector<std::string> parts = split(path);
  if (parts.empty()) return {0, nullptr, {}, root_};
  std::shared_ptr<Node> directory = root_;
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    const auto found = directory->names.find(parts[i]);
    if (found == directory->names.end()) return {ENOENT, nullptr, {}, nullptr};
    directory = found->second;
    if (directory->kind != FileKind::directory) return {ENOTDIR, nullptr, {}, nullptr};
  }
  const auto found = directory->names.find(parts.back());
  return {0, directory, parts.back(), found == directory->names.end() ? nullptr : found->second};
}

std::shared_ptr<MemoryFileSystem::Node> MemoryFileSystem::find(const std::string& path, int& error) const {
  Place place = locate(path);
  error = place.error != 0 ? place.error : place.node == nullptr ? ENOENT : 0;
  return std::move(place.node);
}

std::uint64_t MemoryFileSystem::used_bytes() const { return root_->used_bytes(); }

std::uint64_t MemoryFileSystem::room() const {
  if (!capacity_) return kNoLimit;
  const std::uint64_t used = used_bytes();
  return used < *capacity_ ? *capacity_ - used : 0;
}

int MemoryFileSystem::open(const std::string& path, OpenMode mode, std::unique_ptr<OpenFile>& file) {
  const std::lock_guard lock(mutex_);
  Place place = locate(path);
  if (place.error != 0) return place.error;
  if (place.node != nullptr && place.node->kind == FileKind::directory) return EISDIR;
  if (place.node == nullptr) {
    if (mode == OpenMode::read) return ENOENT;
    place.node = std::make_shared<Node>(FileKind::file);
    place.directory->change_names({{place.name, place.node}});
  } else if (mode == OpenMode::create_new) {
    return EEXIST;
  } else if (mode == OpenMode::create && !place.node->contents.empty()) {
    place.node->contents.clear();
    place.node->pending_writes.push_back({true, 0, {}});
  }
  file = std::make_unique<MemoryFile>(*this, std::move(place.node), mode != OpenMode::read);
  return 0;
}

int MemoryFileSystem::status(const std::string& path, FileStatus& status) {
  const std::lock_guard lock(mutex_);
  int error = 0;
  const std::shared_ptr<Node> node = find(path, error);
  if (error == 0) status = {node->kind, node->contents.size()};
  return error;
}

int MemoryFileSystem::rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(mutex_);
  const Place source = locate(from);
  const Place target = locate(to);
  if (source.error != 0) return source.error;
  if (target.error != 0) return target.error;
  if (source.node == nullptr) return ENOENT;
  if (source.directory == nullptr || target.directory == nullptr) return EBUSY;  // the root stays
  if (source.node == target.node) return 0;
  const bool moves_directory = source.node->kind == FileKind::directory;
  if (target.node != nullptr) {
    const bool onto_directory = target.node->kind == FileKind::directory;
    if (moves_directory != onto_directory) return onto_directory ? EISDIR : ENOTDIR;
    if (onto_directory && !target.node->names.empty()) return ENOTEMPTY;
  }
  if (moves_directory) {  // a folder cannot move into itself
    const std::vector<std::string> above = split(from);
    const std::vector<std::string> below = split(to);
    if (above.size() < below.size() && std::equal(above.begin(), above.end(), below.begin())) return EINVAL;
  }
  if (source.directory == target.directory) {
    source.directory->change_names({{target.name, source.node}, {source.name, nullptr}});
  } else {
    target.directory->change_names({{target.name, source.node}});
    source.directory->change_names({{source.name, nullptr}});
  }
  return 0;
}

int MemoryFileSystem::unlink(const std::string& path) {
  const std::lock_guard lock(mutex_);
  const Place place = locate(path);
  if (place.error != 0) return place.error;
  if (place.node == nullptr) return ENOENT;
  if (place.node->kind == FileKind::directory) return EISDIR;
  place.directory->change_names({{place.name, nullptr}});
  return 0;
}

int MemoryFileSystem::make_directory(const std::string& path) {
  const std::lock_guard lock(mutex_);
  const Place place = locate(path);
  if (place.error != 0) return place.error;
  if (place.node != nullptr) return EEXIST;
  place.directory->change_names({{place.name, std::make_shared<Node>(FileKind::directory)}});
  return 0;
}

int MemoryFileSystem::remove_directory(const std::string& path) {
  const std::lock_guard lock(mutex_);
  const Place place = locate(path);
  if (place.error != 0) return place.error;
  if (place.node == nullptr) return ENOENT;
  if (place.node->kind != FileKind::directory) return ENOTDIR;
  if (place.directory == nullptr) return EBUSY;
  if (!place.node->names.empty()) return ENOTEMPTY;
  place.directory->change_names({{place.name, nullptr}});
  return 0;
}

int MemoryFileSystem::list(const std::string& path, std::vector<DirectoryEntry>& entries) {
  const std::lock_guard lock(mutex_);
  int error = 0;
  const std::shared_ptr<Node> node = find(path, error);
  if (error != 0) return error;
  if (node->kind != FileKind::directory) return ENOTDIR;
  entries.clear();
  for (const auto& [name, inner] : node->names) entries.push_back({name, inner->kind});
  return 0;
}

int MemoryFileSystem::sync_directory(const std::string& path) {
  const std::lock_guard lock(mutex_);
  int error = 0;
  const std::shared_ptr<Node> node = find(path, error);
  if (error != 0) return error;
  if (node->kind != FileKind::directory) return ENOTDIR;
  node->synced_names = node->names;
  node->pending_names.clear();
  return 0;
}

IoResult MemoryFileSystem::free_bytes(const std::string& path) {
  const std::lock_guard lock(mutex_);
  int error = 0;
  if (find(path, error) == nullptr) return {0, error};
  return {room(), 0};
}

}  // namespace castor
