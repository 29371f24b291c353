// Writes the seeds of the fuzz targets: small inputs that are right, or nearly, for the fuzzer to change, and some that
// are made to fill memory.
//
// usage: seeds TARGET FOLDER, from the root of the tree. A target that is not listed here gets none.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/digest.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "formats/manifest.h"
#include "formats/manifest_check.h"
#include "formats/safetensors.h"
#include "formats/zip_archive.h"
#include "tests/support/hostile_files.h"

namespace {

using castor::DType;
using castor::formats::Manifest;

std::vector<std::string> manifests() {
  std::vector<Manifest> all(4);
  all[1].files = {{"state.json", 5, 5, 7}};
  all[2].files = {{"model.safetensors", 20, 8, 1}};
  all[2].tensors = {{"w", "param", DType::f32, {1, 3}, {{0, 8, 0, 3, {9}}}}};
  all[2].aliases = {{"tied", "w"}};
  all[3].save_number = 12;
  all[3].files = {{"model-00001-of-00002.safetensors", 32, 16, 1}, {"model-00002-of-00002.safetensors", 22, 8, 2}};
  all[3].tensors = {{"n", "buffer", DType::i64, {}, {{1, 8, 0, 1, {3}}}},
                    {"w", "exp_avg", DType::f32, {2, 2}, {{0, 16, 0, 3, {4}}, {1, 16, 3, 1, {5}}}},
                    {"none", "param", DType::bf16, {0, 7}, {}},
                    {"w", "param", DType::bf16, {3}, {{0, 28, 0, 2, {6}}, {1, 20, 2, 1, {7}}}}};
  std::vector<std::string> texts;
  for (const Manifest& manifest : all) {
    const std::string text = castor::formats::manifest_text(manifest, "seed");
    const std::size_t tail = castor::formats::manifest_tail(0).size();
    texts.push_back(text);                                // whole
    texts.push_back(text.substr(0, text.size() - tail));  // the target gives it its digest
  }
  const std::string newer = R"({"format":"castor-checkpoint","version":9,"reads":1,"save":4,"new":{"deep":[1,null,)"
                            R"({"x":[[true,1.5,18446744073709551615]]}]},"files":[],"tensors":[],"aliases":{},)";
  texts.push_back(newer);
  texts.push_back(R"({"format":"castor-checkpoint","version":9,"reads":2,"save":4,)");
  return texts;
}

std::vector<std::string> json_texts() {
  return {R"({"a":[1,-2,0.5,1e-3,18446744073709551615,true,false,null],"b":{"c":"\u00e9\ud83d\ude00\n"}})",
          "\xEF\xBB\xBF[\"\xC3\xA9\"]\n",
          "[1e999]",
          "[\"\\ud800\"]",
          "[\"\\ude00\"]",
          "{\"a\":1,\"a\":2}",
          "[[[[[[]]]]]]",
          "\"" + castor::test::repeated("\\n", 3000) + "\""};
}

std::vector<std::string> safetensors_files() {
  using castor::formats::SafetensorsTensor;
  const std::vector<std::byte> bytes(24, std::byte{7});
  const std::span<const std::byte> data(bytes);
  const std::vector<std::vector<SafetensorsTensor>> all = {{},
                                                           {{"w", DType::f32, {2, 2}, data.first(16)}},
                                                           {{"w", DType::bf16, {3}, data.first(6)},
                                                            {"n", DType::i64, {}, data.first(8)},
                                                            {"e", DType::u8, {0, 4}, data.first(0)}}};
  std::vector<std::string> texts;
  for (const auto& tensors : all) {
    for (const bool with_metadata : {false, true}) {
      castor::formats::SafetensorsOptions options;
      if (with_metadata) options.metadata = {{"format", "pt"}, {"k", "v"}};
      const auto plan = castor::formats::plan_safetensors(tensors, options, "seed");
      texts.push_back(std::string(plan.header_bytes) +
                      std::string(plan.header.file_bytes - plan.header.data_begin, 'x'));
    }
  }
  return texts;
}

std::vector<std::string> idx_files() {
  const auto header = [](std::initializer_list<char> sizes) {
    std::string text{'\0', '\0', '\x08', static_cast<char>(sizes.size())};
    for (const char size : sizes) text += {'\0', '\0', '\0', size};
    return text;
  };
  const std::vector<std::string> plain = {header({5}) + "label", header({2, 2, 3}) + "two images..", header({0}),
                                          header({1, 1, 1, 1, 1, 1, 1, 1}) + "x"};
  std::vector<std::string> all = plain;
  for (const std::string& text : plain) all.push_back(castor::test::gzipped(text));
  return all;
}

std::vector<std::string> token_files() {
  std::vector<std::string> all;
  for (const double fraction : {0.0, 0.05, 0.5, 0.999, 1.0, -1.0}) {
    std::string text(sizeof fraction, '\0');
    std::memcpy(text.data(), &fraction, sizeof fraction);
    all.push_back(text);
    all.push_back(text + "In the beginning God created the heaven and the earth.");
  }
  return all;
}

// A state dict of one float tensor of 2 x 3 in the storage "0" of 24 bytes, which the target puts beside it.
std::string small_pickle() {
  const auto word = [](const std::string& text) {
    return std::string{'X', static_cast<char>(text.size()), '\0', '\0', '\0'} + text;
  };
  const auto number = [](int value) { return std::string{'K', static_cast<char>(value)}; };
  const std::string storage =
      "(" + word("storage") + "ctorch\nFloatStorage\n" + word("0") + word("cpu") + number(6) + "tQ";
  return "\x80\x02}" + word("w") + "ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + number(2) +
         number(3) + "\x86" + number(3) + number(1) + "\x86\x89" + "ccollections\nOrderedDict\n)RtRs.";
}

// Recorded files of PyTorch, and the pickles in them.
std::vector<std::string> torch_files() {
  std::vector<std::string> all = {small_pickle()};
  for (const std::string folder : {"tests/parity/data/torch_1.13", "tests/parity/data/torch_2.11"}) {
    if (!castor::is_directory(folder)) continue;
    for (const castor::DirectoryEntry& file : castor::list_directory(folder)) {
      const std::string path = castor::join_path(folder, file.name);
      if (!path.ends_with(".pth")) continue;
      all.push_back(castor::read_text_file(path));
      try {
        const auto archive = castor::formats::ZipArchive::open(path);
        for (const castor::formats::ZipEntry& entry : archive.entries()) {
          if (!entry.name.ends_with("/data.pkl")) continue;
          const std::vector<std::byte> bytes = archive.read(entry);
          all.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        }
      } catch (const castor::FormatError&) {  // PyTorch's format before 1.6 is no archive
      }
    }
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: seeds TARGET FOLDER\n");
    return 2;
  }
  try {
    const std::string target = argv[1];
    std::vector<std::string> seeds;
    if (target == "manifest") seeds = manifests();
    if (target == "safetensors") seeds = safetensors_files();
    if (target == "json") seeds = json_texts();
    if (target == "idx") seeds = idx_files();
    if (target == "token_file") seeds = token_files();
    if (target == "torch_pickle") seeds = torch_files();
    constexpr std::size_t kHostileBytes = 3000;
    std::vector<std::string> hostile;
    if (target == "manifest") hostile = castor::test::hostile_manifests(kHostileBytes);
    if (target == "safetensors") hostile = castor::test::hostile_safetensors(kHostileBytes);
    if (target == "idx") hostile = castor::test::hostile_idx(kHostileBytes);
    if (target == "torch_pickle") hostile = castor::test::hostile_torch_files(kHostileBytes);
    seeds.insert(seeds.end(), hostile.begin(), hostile.end());
    castor::make_directories(argv[2]);
    for (std::size_t i = 0; i < seeds.size(); ++i) {
      castor::write_file_atomically(castor::join_path(argv[2], castor::cat("seed_", i)), seeds[i]);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "seeds: %s\n", error.what());
    return 1;
  }
  return 0;
}
