// `castor ckpt export`: weights for other people's tools.
#include <algorithm>
#include <memory>
#include <optional>
#include <ostream>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/export_weights.h"
#include "strategy/cli/byte_size.h"
#include "strategy/cli/ckpt.h"
#include "strategy/cli/ckpt_output.h"
#include "strategy/name_map_file.h"

namespace castor::strategy {
namespace {

struct ExportArguments {
  std::string checkpoint;
  std::string folder;
  std::optional<std::string> dtype;
  std::string max_shard_size = "5GB";
  std::optional<std::string> map;
  std::optional<std::string> from;
  bool force = false;
};

int export_checkpoint(const ExportArguments& arguments, std::ostream& out) {
  formats::ExportOptions options;
  options.max_shard_bytes = parse_size(arguments.max_shard_size, "--max-shard-size");
  options.replace = arguments.force;
  const formats::NameMap names = arguments.map ? load_name_map(*arguments.map) : formats::NameMap();
  const formats::TensorSource source = formats::open_tensor_source(arguments.checkpoint);
  if (!source.has_roles) {
    throw FormatError(
        cat("export ", quote_name(arguments.checkpoint, 4096), ": expected a checkpoint of Castor, this is ",
            source.kind, "; `castor ckpt import` makes one of it"),
        arguments.checkpoint, 0);
  }
  print_notes(source.notes, out);
  const formats::WeightList list = formats::list_weights(source, names, chosen_dtype(arguments.dtype),
                                                         arguments.from.value_or("master") == "master");
  BytesBar bar("export", list.bytes());
  options.progress = bar.progress();
  const formats::ExportReport report = formats::export_weights(list, arguments.folder, options);
  print_left_out(list, report.overflowed, out);
  for (const auto& [alias, name] : list.aliases)
    out << "tied: " << quote_name(alias) << " is " << quote_name(name) << "\n";
  if (list.masters > 0)
    out << "took the master copy of " << list.masters << " tensors; --from param takes the params\n";
  out << "wrote " << list.weights.size() << " tensors to " << arguments.folder << ": " << report.files.size()
      << (report.files.size() == 1 ? " file, " : " files and their index, ") << bar.rate_text(report.bytes) << "\n";
  return kExitOk;
}

}  // namespace

Subcommand ckpt_export_command() {
  auto arguments = std::make_shared<ExportArguments>();
  Subcommand command;
  command.name = "export";
  command.summary =
      "write a checkpoint's weights as Hugging Face safetensors: model.safetensors, or numbered files and "
      "model.safetensors.index.json; takes at most 128 MiB of memory beside the names";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    list.positional("CKPT", arguments->checkpoint, "a checkpoint's folder, or a run's: its newest one");
    list.positional("OUT", arguments->folder, "the folder to write; made if missing, refused if not empty");
    list.choice("--dtype", arguments->dtype, {"f32", "bf16", "f16", "keep"},
                "what floating-point tensors become; default keep");
    list.option(
        "--max-shard-size", arguments->max_shard_size, "SIZE",
        "most bytes of tensors in a file: 5GB, 512MiB, 1000000; default 5GB. A larger tensor gets its own file");
    list.option("--map", arguments->map, "FILE",
                "YAML or JSON that renames tensors: a map {old: new, ...}, or a list of rules {name: OLD, to: NEW} and "
                "{regex: EXPRESSION, to: REPLACEMENT} with $1 for groups, applied in order; to: null leaves out");
    list.choice("--from", arguments->from, {"master", "param"},
                "master (default): the f32 master copy of a param where there is one; param: what is trained with");
    list.flag("--force", arguments->force, "replace an earlier export in OUT; other files in it stay");
  };
  command.run = [arguments](Registry&, std::ostream& out) { return export_checkpoint(*arguments, out); };
  return command;
}

}  // namespace castor::strategy
