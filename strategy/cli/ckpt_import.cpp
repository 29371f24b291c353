// `castor ckpt import`: other people's weights as a checkpoint.
#include <memory>
#include <optional>
#include <ostream>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/import_weights.h"
#include "strategy/cli/ckpt.h"
#include "strategy/cli/ckpt_output.h"
#include "strategy/name_map_file.h"

namespace castor::strategy {
namespace {

struct ImportArguments {
  std::string source;
  std::string folder;
  std::optional<std::string> map;
  std::optional<std::string> dtype;
  std::optional<std::string> key;
  bool force = false;
};

int import_source(const ImportArguments& arguments, std::ostream& out) {
  const formats::NameMap names = arguments.map ? load_name_map(*arguments.map) : formats::NameMap();
  formats::SourceOptions source_options;
  source_options.key = arguments.key.value_or("");
  const formats::TensorSource source = formats::open_tensor_source(arguments.source, source_options);
  if (source.has_roles) {
    throw FormatError(cat("import ", quote_name(arguments.source, 4096), ": it is a checkpoint of Castor already"),
                      arguments.source, 0);
  }
  print_notes(source.notes, out);
  const formats::WeightList list = formats::list_weights(source, names, chosen_dtype(arguments.dtype), false);
  BytesBar bar("import", list.bytes());
  formats::ImportOptions options;
  options.replace = arguments.force;
  options.progress = bar.progress();
  const formats::ImportReport report = formats::import_weights(list, arguments.folder, options);
  print_left_out(list, report.overflowed, out);
  for (const auto& [alias, name] : list.aliases)
    out << "tied: " << quote_name(alias) << " is " << quote_name(name) << "\n";
  out << "imported " << list.weights.size() << " tensors from " << source.path << " (" << source.kind << ") to "
      << arguments.folder << ": " << bar.rate_text(report.bytes) << "\n";
  return kExitOk;
}

}  // namespace

Subcommand ckpt_import_command() {
  auto arguments = std::make_shared<ImportArguments>();
  Subcommand command;
  command.name = "import";
  command.summary =
      "make a checkpoint of weights from elsewhere; PyTorch files are read without running anything in them; "
      "takes at most 128 MiB of memory beside the names";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    list.positional(
        "SRC", arguments->source,
        "a .safetensors file, a PyTorch .pth, .pt or .bin file, an index (*.index.json) of either, a Hugging "
        "Face folder, or a checkpoint or run folder of ColossalAI or mmengine: only the weights are taken");
    list.positional("OUT", arguments->folder, "the checkpoint's folder; made if missing, refused if not empty");
    list.option("--map", arguments->map, "FILE", "renames tensors, as in `castor ckpt export`");
    list.choice("--dtype", arguments->dtype, {"f32", "bf16", "f16", "keep"},
                "what floating-point tensors become; default keep");
    list.option("--key", arguments->key, "KEY",
                "the entry of a PyTorch file that holds the weights; left out: state_dict, model_state_dict, model or "
                "module, else the file's top level");
    list.flag("--force", arguments->force, "replace the checkpoint that is in OUT");
  };
  command.run = [arguments](Registry&, std::ostream& out) { return import_source(*arguments, out); };
  return command;
}

}  // namespace castor::strategy
