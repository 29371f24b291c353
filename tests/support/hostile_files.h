// Files made to fill a reader's memory: as many small things as fit the bytes, or one large one.
//
// Each function takes about how long the files may be and returns several, some valid up to their end, some not.
// Delicate: what grows is what counts here, not what is refused, so most defects come late in a file.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <zlib.h>

#include "core/base/digest.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "formats/manifest_check.h"
#include "tests/support/pickle_writer.h"
#include "tests/support/zip_writer.h"

namespace castor::test {

/// `piece(0)`, `piece(1)`, ... with commas between them, `bytes` long or a little more.
inline std::string many(std::size_t bytes, const std::function<std::string(std::size_t)>& piece) {
  std::string text;
  for (std::size_t i = 0; text.size() < bytes; ++i) text += (i == 0 ? "" : ",") + piece(i);
  return text;
}

/// `piece` again and again, about `bytes` long.
inline std::string repeated(const std::string& piece, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += piece;
  return text;
}

/// Manifests, each with the digest that it deserves.
inline std::vector<std::string> hostile_manifests(std::size_t bytes) {
  const std::string begin = R"({"format":"castor-checkpoint","version":1,"reads":1,"save":1,)";
  const std::string rest = R"("files":[],"tensors":[],"aliases":{},)";
  const auto tensor = [](const std::string& name, const std::string& shape, const std::string& slices) {
    return R"({"name":")" + name + R"(","role":"param","dtype":"U8","shape":[)" + shape + R"(],"slices":[)" + slices +
           "]}";
  };
  const auto number = [](std::size_t i) { return cat(i); };
  const std::string digits(16, '0');
  std::size_t slices = 0;
  const std::string pieces = many(bytes, [&](std::size_t i) {
    slices = i + 1;
    return cat("[0,", i, ",", i, ",1,\"", digits, "\"]");
  });
  const std::string one_file =
      R"("files":[{"name":"a","bytes":)" + cat(slices) + R"(,"head_bytes":0,"head_xxh3":")" + digits + "\"}],";
  std::vector<std::string> texts = {
      begin + one_file + R"("tensors":[)" + tensor("w", cat(slices), pieces) + R"(],"aliases":{},)",
      begin + R"("files":[],"tensors":[)" + tensor("w", "0", many(bytes, [](auto) { return R"([0,0,0,0,""])"; })) +
          "],",
      begin + R"("files":[],"tensors":[)" +
          tensor("w", "1", "[0,0,0,1,\"" + std::string(bytes / 16 * 16, '0') + "\"]") + "],",
      begin + R"("files":[],"tensors":[)" +
          many(bytes, [&](std::size_t i) { return tensor(cat(1'000'000 + i), "0", ""); }) + R"(],"aliases":{},)",
      begin + R"("tensors":[)" + many(bytes, [](auto) { return "{}"; }) + "],",
      begin + R"("files":[)" +
          many(bytes,
               [&](std::size_t i) {
                 return R"({"name":")" + cat(i) + R"(","bytes":0,"head_bytes":0,"head_xxh3":")" + digits + "\"}";
               }) +
          R"(],"tensors":[],"aliases":{},)",
      begin + R"("files":[],"tensors":[],"aliases":{)" +
          many(bytes, [](std::size_t i) { return "\"" + cat(i) + "\":\"w\""; }) + "},",
      begin + R"("files":[],"tensors":[)" + tensor(std::string(bytes, 'n'), "0", "") + "],",
      begin + R"("files":[],"tensors":[)" + tensor(repeated("\\n", bytes), "0", "") + "],",
      begin + R"("files":[],"tensors":[)" + tensor("w", many(bytes, number), "") + "],",
      begin + R"("new":[)" + many(bytes, number) + "]," + rest,
      begin + R"("new":{)" + many(bytes, [](std::size_t i) { return "\"" + cat(i) + "\":1"; }) + "}," + rest,
      begin + R"("new":)" + std::string(bytes, '7') + "," + rest,
      begin + R"("new":)" + std::string(bytes, '[') + rest,
  };
  for (std::string& text : texts) text += formats::manifest_tail(xxh3(as_byte_span(text)));
  return texts;
}

/// Safetensors files: headers without data.
inline std::vector<std::string> hostile_safetensors(std::size_t bytes) {
  const std::string empty = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  const auto member = [](const std::string& name, const std::string& value) { return "\"" + name + "\":" + value; };
  std::vector<std::string> files;
  for (const std::string& header :
       {many(bytes, [&](std::size_t i) { return member(cat(i), empty); }),
        member("__metadata__", "{" + many(bytes, [&](std::size_t i) { return member(cat(i), "\"\""); }) + "}"),
        member(std::string(bytes, 'n'), empty), member(repeated("\\n", bytes), empty),
        member("__metadata__", "{" + member("k", "\"" + repeated("\\u00e9", bytes) + "\"") + "}"),
        member("w", R"({"dtype":"U8","shape":[)" + many(bytes, [](auto) { return "1"; }) + "]}"),
        many(bytes, [&](std::size_t i) { return member(cat(i), "{}"); }), std::string(bytes, '[')}) {
    std::string file;
    append_number(file, header.size() + 2, 8);
    files.push_back(file + "{" + header + "}");
  }
  return files;
}

/// `text` as gzip packs it.
inline std::string gzipped(const std::string& text) {
  std::string out(text.size() + 100, '\0');
  z_stream state{};
  deflateInit2(&state, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  state.avail_in = static_cast<uInt>(text.size());
  state.next_out = reinterpret_cast<Bytef*>(out.data());
  state.avail_out = static_cast<uInt>(out.size());
  deflate(&state, Z_FINISH);
  out.resize(state.total_out);
  deflateEnd(&state);
  return out;
}

/// IDX files: plain ones, and gzipped ones that unfold to a thousand times their length or claim to.
inline std::vector<std::string> hostile_idx(std::size_t bytes) {
  const auto header = [](std::size_t size) {
    std::string text("\0\0\x08\x01", 4);
    for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(size >> shift & 0xFF);
    return text;
  };
  const std::string zeros(bytes, '\0');
  return {header(bytes) + zeros,          header(bytes + 1) + zeros,          header(bytes * 100) + zeros,
          gzipped(header(bytes) + zeros), gzipped(header(bytes * 2) + zeros), gzipped(header(1) + zeros)};
}

/// PyTorch archives: their pickles, and archives of many entries or long names.
inline std::vector<std::string> hostile_torch_files(std::size_t bytes) {
  using namespace pickle;
  const std::string shared = tensor(storage("FloatStorage", "0", 6), 0, {6}, {1});
  std::string puts, distinct;
  for (std::size_t i = 0; puts.size() < bytes; ++i) puts += op('r', i, 4);
  for (std::size_t i = 0; distinct.size() < bytes; ++i) distinct += op('M', i & 0xFFFF, 2) + "N";
  const std::vector<std::string> values = {
      "(" + std::string(bytes, 'N') + "l",
      "(" + std::string(bytes, 'N') + "t",
      "(" + std::string(bytes, ']') + "l",
      "(" + std::string(bytes, '}') + "l",
      "]" + repeated("Na", bytes),
      std::string(bytes, '('),
      repeated("(N", bytes),
      std::string(bytes, ']') + std::string(bytes, 'a'),
      "N" + std::string(bytes, '2'),
      "N" + puts,
      "N" + op('r', bytes, 4),
      "(" + repeated("N" + op(0x94), bytes) + "l",
      "(" + distinct + "d",
      text(std::string(bytes, 't')),
      op('B', bytes, 4) + std::string(bytes, 'b'),
      call(global("_codecs", "encode"), tuple({text(std::string(bytes, 't')), text("latin1")})),
      call(global("builtins", "set"), tuple({"(" + std::string(bytes, 'N') + "l"})),
      dict({text(std::string(bytes, 'n')), "N", text("w"), shared}),
      "(" + text("list") + "(" + shared + op('q', 0, 1) + repeated(op('h', 0, 1), bytes) + "l" + "d",
      "(" + text("w") + shared + text("list") + "(" + std::string(bytes, 'N') + "l" + "d",
  };
  std::vector<std::string> files;
  for (const std::string& value : values) {
    files.push_back(write_zip({{"m/data.pkl", whole(value)}, {"m/data/0", std::string(24, 'x')}}, true).bytes);
  }
  const std::string small = whole("N");
  std::vector<std::pair<std::string, std::string>> entries = {{"m/data.pkl", small}};
  while (entries.size() * 100 < bytes) entries.emplace_back(cat("m/", entries.size()), "");
  files.push_back(write_zip(entries, false).bytes);
  const std::string name(std::min<std::size_t>(bytes / 2, 60'000), 'm');
  files.push_back(write_zip({{name + "/data.pkl", small}}, false).bytes);
  return files;
}

}  // namespace castor::test
