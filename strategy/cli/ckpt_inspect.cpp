// `castor ckpt inspect`: what a checkpoint, a run's folder or a file of weights holds, for people or for programs.
//
// Delicate: a large model has thousands of tensors, so those that differ in the numbers of their names only share a row
// unless all are asked for.
#include <algorithm>
#include <cctype>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "core/device/caching_allocator.h"
#include "formats/array_shape.h"
#include "formats/tensor_source.h"
#include "strategy/cli/ckpt.h"
#include "strategy/cli/ckpt_output.h"

namespace castor::strategy {
namespace {

constexpr std::size_t kShortList = 40;  // longer ones are folded

struct InspectArguments {
  std::string path;
  bool json = false;
  bool tensors = false;
  std::optional<std::string> key;
};

// One tensor with the number of its pieces; 1 where the source is no checkpoint.
struct Item {
  const formats::SourceTensor* tensor;
  std::size_t slices = 1;
};

struct Contents {
  formats::TensorSource source;
  std::shared_ptr<const formats::Checkpoint> checkpoint;  // null for other sources
  std::vector<Item> items;
  std::optional<Json> state;
  std::vector<std::pair<std::string, std::uint64_t>> files;
};

Contents read_contents(const InspectArguments& arguments) {
  Contents contents;
  if (exists(join_path(arguments.path, formats::kManifestName))) {
    contents.checkpoint = std::make_shared<const formats::Checkpoint>(formats::Checkpoint::open(arguments.path));
    contents.source = formats::checkpoint_source(contents.checkpoint);
    const formats::Manifest& manifest = contents.checkpoint->manifest();
    for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
      contents.items.push_back({&contents.source.tensors[i], manifest.tensors[i].slices.size()});
    }
    for (const formats::CheckpointFile& file : manifest.files) {
      contents.files.emplace_back(file.name, file.bytes);
    }
    if (contents.checkpoint->has_text("state", "json")) {
      contents.state = parse_json(contents.checkpoint->read_text("state", "json"), "state.json");
    }
    for (const formats::Damage& missing : contents.checkpoint->missing_files()) {
      contents.source.notes.push_back(cat("damaged: ", missing.file, " ", missing.what));
    }
    return contents;
  }
  formats::SourceOptions options;
  options.key = arguments.key.value_or("");
  options.checksums = false;
  contents.source = formats::open_tensor_source(arguments.path, options);
  for (const formats::SourceTensor& tensor : contents.source.tensors) contents.items.push_back({&tensor});
  for (const std::string& file : contents.source.files)
    contents.files.emplace_back(file_name_of(file), file_size(file));
  return contents;
}

// Tensors of one name: the param and what belongs to it.
struct Row {
  std::string name;
  std::string shape;  // of the first role
  std::string roles;
  std::uint64_t bytes = 0;
  std::size_t slices = 0;
  std::size_t count = 1;
};

// "param, master f32, exp_avg_sq_row f32[4]": what differs from the first is said.
std::vector<Row> rows_of(const Contents& contents) {
  std::map<std::string, std::vector<Item>> by_name;
  for (const Item& item : contents.items) by_name[item.tensor->name].push_back(item);
  std::vector<Row> rows;
  for (auto& [name, items] : by_name) {
    std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
      return formats::is_weight_role(a.tensor->role) > formats::is_weight_role(b.tensor->role);
    });
    const formats::SourceTensor& first = *items.front().tensor;
    Row row{name, tensor_text(first.dtype, first.shape), ""};
    for (const Item& item : items) {
      const formats::SourceTensor& tensor = *item.tensor;
      row.roles += (row.roles.empty() ? "" : ", ") + tensor.role;
      if (tensor.shape != first.shape) {
        row.roles += " " + tensor_text(tensor.dtype, tensor.shape);
      } else if (tensor.dtype != first.dtype) {
        row.roles += cat(" ", tensor.dtype);
      }
      row.bytes += tensor.bytes();
      row.slices += item.slices;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

// The name with each number as "*".
std::string pattern_of(const std::string& name) {
  std::string pattern;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const bool is_digit = std::isdigit(static_cast<unsigned char>(name[i])) != 0;
    const bool at_start = i == 0 || name[i - 1] == '.';
    if (!is_digit || !at_start) {
      pattern += name[i];
      continue;
    }
    std::size_t end = i;
    while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end])) != 0) ++end;
    const bool is_part = end == name.size() || name[end] == '.';
    pattern += is_part ? "*" : name.substr(i, end - i);
    i = end - 1;
  }
  return pattern;
}

std::vector<Row> folded(const std::vector<Row>& rows) {
  std::vector<Row> result;
  std::map<std::vector<std::string>, std::size_t> seen;
  for (const Row& row : rows) {
    const auto [place, is_new] = seen.try_emplace({pattern_of(row.name), row.shape, row.roles}, result.size());
    if (is_new) {
      result.push_back(row);
    } else {
      Row& group = result[place->second];
      group.name = place->first.front();
      group.bytes += row.bytes;
      group.slices += row.slices;
      ++group.count;
    }
  }
  return result;
}

// A value of state.json in a few words.
std::string brief(const Json& value) {
  if (value.is_object()) return cat("{", value.size(), value.size() == 1 ? " key}" : " keys}");
  if (value.is_array()) return cat("[", value.size(), value.size() == 1 ? " item]" : " items]");
  const std::string text = dump_json(value);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

void print_tensors(const Contents& contents, bool all, std::ostream& out) {
  std::vector<Row> rows = rows_of(contents);
  const std::size_t names = rows.size();
  const bool is_folded = !all && rows.size() > kShortList;
  if (is_folded) rows = folded(rows);
  out << "tensors: " << contents.items.size() << " under " << names << " names"
      << (is_folded ? "; alike ones share a row, --tensors lists all" : "") << "\n";
  std::vector<std::vector<std::string>> table = {{"name", "tensor", "bytes", "slices", "roles"}};
  for (const Row& row : rows) {
    table.push_back({quote_name(row.name).size() == row.name.size() + 2 ? row.name : quote_name(row.name), row.shape,
                     bytes_text(row.bytes), cat(row.slices),
                     row.roles + (row.count > 1 ? cat("  (", row.count, " names)") : "")});
  }
  out << columns_text(table);
}

struct RoleTotal {
  std::size_t tensors = 0;
  std::uint64_t elements = 0;
  std::uint64_t bytes = 0;
};

std::map<std::string, RoleTotal> role_totals(const Contents& contents) {
  std::map<std::string, RoleTotal> totals;
  for (const Item& item : contents.items) {
    RoleTotal& total = totals[item.tensor->role];
    ++total.tensors;
    total.elements += item.tensor->numel();
    total.bytes += item.tensor->bytes();
  }
  return totals;
}

void print_contents(const Contents& contents, bool all, std::ostream& out) {
  std::uint64_t bytes = 0;
  for (const auto& [name, size] : contents.files) bytes += size;
  out << contents.source.path << ": " << contents.source.kind;
  if (contents.checkpoint != nullptr) out << ", save number " << contents.checkpoint->manifest().save_number;
  out << ", " << bytes_text(bytes) << " in " << contents.files.size()
      << (contents.files.size() == 1 ? " file\n" : " files\n");
  print_notes(contents.source.notes, out);
  print_tensors(contents, all, out);
  out << "roles:\n";
  std::vector<std::vector<std::string>> table = {{"role", "tensors", "elements", "bytes"}};
  for (const auto& [role, total] : role_totals(contents)) {
    table.push_back({role, cat(total.tensors), cat(total.elements), bytes_text(total.bytes)});
  }
  out << columns_text(table) << "files:\n";
  table.clear();
  for (const auto& [name, size] : contents.files) table.push_back({name, bytes_text(size)});
  out << columns_text(table);
  if (!contents.source.aliases.empty()) {
    out << "tied tensors:\n";
    table.clear();
    for (const auto& [alias, name] : contents.source.aliases) table.push_back({alias, "is " + name});
    out << columns_text(table);
  }
  if (contents.state) {
    out << "state.json:\n";
    table.clear();
    if (!contents.state->is_object()) table.push_back({brief(*contents.state)});
    if (contents.state->is_object()) {
      for (const auto& [key, value] : contents.state->items()) table.push_back({key, brief(value)});
    }
    out << columns_text(table);
  }
}

Json contents_json(const Contents& contents) {
  Json json;
  json["path"] = contents.source.path;
  json["kind"] = contents.source.kind;
  if (contents.checkpoint != nullptr) {
    json["version"] = contents.checkpoint->manifest().version;
    json["save_number"] = contents.checkpoint->manifest().save_number;
  }
  json["notes"] = contents.source.notes;
  Json& files = json["files"] = Json::array();
  for (const auto& [name, size] : contents.files) files.push_back({{"name", name}, {"bytes", size}});
  Json& roles = json["roles"] = Json::object();
  for (const auto& [role, total] : role_totals(contents)) {
    roles[role] = {{"tensors", total.tensors}, {"elements", total.elements}, {"bytes", total.bytes}};
  }
  Json& tensors = json["tensors"] = Json::array();
  for (const Item& item : contents.items) {
    const formats::SourceTensor& tensor = *item.tensor;
    tensors.push_back({{"name", tensor.name},
                       {"role", tensor.role},
                       {"dtype", std::string(dtype_name(tensor.dtype))},
                       {"shape", tensor.shape},
                       {"bytes", tensor.bytes()},
                       {"slices", item.slices}});
  }
  Json& aliases = json["aliases"] = Json::object();
  for (const auto& [alias, name] : contents.source.aliases) aliases[alias] = name;
  json["state"] = contents.state.value_or(Json());
  return json;
}

int inspect_run(const std::string& path, const formats::CheckpointList& list, bool as_json, std::ostream& out) {
  if (as_json) {
    Json json{{"path", path}, {"kind", "run"}};
    Json& checkpoints = json["checkpoints"] = Json::array();
    for (const auto& c : list.checkpoints) {
      checkpoints.push_back({{"name", c.name}, {"save_number", c.save_number}, {"bytes", c.bytes}});
    }
    Json& torn = json["torn"] = Json::array();
    for (const auto& t : list.torn) torn.push_back({{"name", t.name}, {"reason", t.reason}});
    out << dump_json(json, 2) << "\n";
    return kExitOk;
  }
  out << path << ": " << list.checkpoints.size() << (list.checkpoints.size() == 1 ? " checkpoint" : " checkpoints")
      << ", newest first\n";
  std::vector<std::vector<std::string>> table = {{"name", "save number", "bytes"}};
  for (const auto& c : list.checkpoints) table.push_back({c.name, cat(c.save_number), bytes_text(c.bytes)});
  out << columns_text(table);
  if (!list.torn.empty()) {
    out << "torn, not used by a resume:\n";
    table.clear();
    for (const auto& t : list.torn) table.push_back({t.name, t.reason});
    out << columns_text(table);
  }
  return kExitOk;
}

// A run of mmengine has folders that are called like ours and are none.
bool is_foreign_run(const std::string& path) {
  try {
    return !formats::open_tensor_source(path, {"", false}).has_roles;
  } catch (const Error&) {
    return false;
  }
}

int inspect(const InspectArguments& arguments, std::ostream& out) {
  formats::CheckpointList list;
  if (is_run_folder(arguments.path, list) && (!list.checkpoints.empty() || !is_foreign_run(arguments.path))) {
    return inspect_run(arguments.path, list, arguments.json, out);
  }
  const Contents contents = read_contents(arguments);
  if (arguments.json) {
    out << dump_json(contents_json(contents), 2) << "\n";
  } else {
    print_contents(contents, arguments.tensors, out);
  }
  return kExitOk;
}

}  // namespace

Subcommand ckpt_inspect_command() {
  auto arguments = std::make_shared<InspectArguments>();
  Subcommand command;
  command.name = "inspect";
  command.summary = "print what a checkpoint, a run's folder, or a safetensors or PyTorch file holds";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    list.positional("PATH", arguments->path,
                    "a checkpoint's folder, a run's (then the list of its checkpoints), or anything that import takes");
    list.flag("--json", arguments->json, "print JSON: every tensor, the files, and the whole state.json");
    list.flag("--tensors", arguments->tensors, "list every tensor, also of a long model");
    list.option("--key", arguments->key, "KEY", "the entry of a PyTorch file that holds the weights");
  };
  command.run = [arguments](Registry&, std::ostream& out) { return inspect(*arguments, out); };
  return command;
}

}  // namespace castor::strategy
