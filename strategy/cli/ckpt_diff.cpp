// `castor ckpt diff`: do two sources hold the same tensors, whatever ranks or programs wrote them?
#include <cmath>
#include <memory>
#include <optional>
#include <ostream>
#include <sstream>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/compare_tensors.h"
#include "strategy/cli/ckpt.h"
#include "strategy/cli/ckpt_output.h"

namespace castor::strategy {
namespace {

struct DiffArguments {
  std::string a, b;
  std::optional<std::string> role;
  double tolerance = 0;
  std::optional<std::string> key;
};

// "[1,0,3]" of an element counted row-major.
std::string index_text(std::uint64_t element, const std::vector<std::int64_t>& shape) {
  std::string text;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    const auto size = static_cast<std::uint64_t>(shape[axis]);
    text = cat(element % size, text.empty() ? "" : ",", text);
    element /= size;
  }
  return "[" + text + "]";
}

std::string describe(const formats::TensorDifference& difference) {
  using Kind = formats::TensorDifference::Kind;
  const std::string who = cat(quote_name(difference.name), " (", difference.role, ")");
  const auto text = [](const formats::SourceTensor& tensor) { return tensor_text(tensor.dtype, tensor.shape); };
  switch (difference.kind) {
    case Kind::only_in_a:
      return cat("only in A: ", who, " ", text(*difference.a));
    case Kind::only_in_b:
      return cat("only in B: ", who, " ", text(*difference.b));
    case Kind::shape:
      return cat("shape: ", who, " is ", text(*difference.a), " in A, ", text(*difference.b), " in B");
    case Kind::values:
      break;
  }
  const formats::ValueDifference& values = difference.values;
  const bool same_dtype = difference.a->dtype == difference.b->dtype;
  return cat("values: ", who, " ", text(*difference.a),
             same_dtype ? "" : cat(" against ", difference.b->dtype, " (compared as f64)"), ": ", values.differing,
             " of ", difference.a->numel(), " elements differ, max absolute ", values.max_absolute, ", relative ",
             values.max_relative, ", first at ", index_text(values.first, difference.a->shape));
}

int diff(const DiffArguments& arguments, std::ostream& out) {
  if (!std::isfinite(arguments.tolerance) || arguments.tolerance < 0) {
    throw ConfigError(cat("--tolerance: a number from 0 expected, got ", arguments.tolerance), "");
  }
  formats::SourceOptions source_options;
  source_options.key = arguments.key.value_or("");
  const formats::TensorSource a = formats::open_tensor_source(arguments.a, source_options);
  const formats::TensorSource b = formats::open_tensor_source(arguments.b, source_options);
  out << "A: " << a.path << " (" << a.kind << ", " << a.tensors.size() << " tensors)\n";
  print_notes(a.notes, out);
  out << "B: " << b.path << " (" << b.kind << ", " << b.tensors.size() << " tensors)\n";
  print_notes(b.notes, out);
  formats::CompareOptions options;
  options.role = arguments.role;
  options.tolerance = arguments.tolerance;
  BytesBar bar("diff", formats::bytes_to_compare(a, b, options));
  options.progress = bar.progress();
  const formats::CompareReport report = formats::compare_sources(a, b, options);
  for (const formats::TensorDifference& difference : report.differences) out << describe(difference) << "\n";
  if (report.skipped > 0) {
    out << "not compared: " << report.skipped << " tensors of other roles, which the other side has no room for\n";
  }
  if (report.unnoted_aliases > 0) {
    out << "not compared: " << report.unnoted_aliases
        << " further names of tied tensors, which one side does not note\n";
  }
  if (report.other_dtypes > 0) {
    out << report.other_dtypes << " tensors have different dtypes in A and B; their values were compared as f64\n";
  }
  if (report.equal()) {
    out << "equal: " << report.compared << " tensors"
        << (arguments.tolerance > 0 ? cat(", within ", arguments.tolerance) : "") << "\n";
    return kExitOk;
  }
  out << "different: " << report.differences.size() << " tensors; " << report.compared << " pairs were compared\n";
  return kExitRunError;
}

}  // namespace

Subcommand ckpt_diff_command() {
  auto arguments = std::make_shared<DiffArguments>();
  Subcommand command;
  command.name = "diff";
  command.summary =
      "compare the tensors of A and B by name, however they were cut: `equal` and exit code 0, or each difference and "
      "exit code 1; takes at most 192 MiB of memory beside the names";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    list.positional("A", arguments->a, "a checkpoint, safetensors or PyTorch file, index, or folder of these");
    list.positional("B", arguments->b, "another one; beside files, which have no roles, a checkpoint's weights count");
    list.option("--role", arguments->role, "ROLE",
                "only tensors of this role: param (with buffers), master, exp_avg, ...; `master` beside a file takes "
                "weights where there is no master");
    list.option("--tolerance", arguments->tolerance, "X",
                "accept differences up to X * max(1, |a|, |b|); 0 asks for equal bits, of two dtypes equal values");
    list.option("--key", arguments->key, "KEY", "the entry of PyTorch files that holds the weights");
  };
  command.run = [arguments](Registry&, std::ostream& out) { return diff(*arguments, out); };
  return command;
}

}  // namespace castor::strategy
