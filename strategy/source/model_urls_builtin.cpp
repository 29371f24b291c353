// The built-in names: what torchvision and MMEngine publish, as data.
//
// Delicate: most file names end in the first digits of the file's SHA-256, which downloads are checked against. Where a
// publisher replaced a file (torchvision's EfficientNets), the row names the file that is served today.
// Source: the documentation of torchvision 0.14 and 0.16 (Models and pre-trained weights) and MMEngine 0.10 (hub).
#include <array>
#include <string_view>

#include "core/base/error.h"
#include "strategy/source/model_urls.h"

namespace castor::strategy {
namespace {

/// One classifier trained on ImageNet-1K: its first weights, and the better ones that came later, if any.
struct TorchvisionRow {
  std::string_view name;
  std::string_view v1;
  std::string_view v2;
};

constexpr std::string_view kTorchvisionBase = "https://download.pytorch.org/models/";
constexpr std::array<TorchvisionRow, 78> kTorchvision{{
    {"alexnet", "alexnet-owt-7be5be79.pth", ""},
    {"convnext_tiny", "convnext_tiny-983f1562.pth", ""},
    {"convnext_small", "convnext_small-0c510722.pth", ""},
    {"convnext_base", "convnext_base-6075fbad.pth", ""},
    {"convnext_large", "convnext_large-ea097f82.pth", ""},
    {"densenet121", "densenet121-a639ec97.pth", ""},
    {"densenet161", "densenet161-8d451a50.pth", ""},
    {"densenet169", "densenet169-b2777c0a.pth", ""},
    {"densenet201", "densenet201-c1103571.pth", ""},
    {"efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth", ""},
    {"efficientnet_b1", "efficientnet_b1_rwightman-bac287d4.pth", "efficientnet_b1-c27df63c.pth"},
    {"efficientnet_b2", "efficientnet_b2_rwightman-c35c1473.pth", ""},
    {"efficientnet_b3", "efficientnet_b3_rwightman-b3899882.pth", ""},
    {"efficientnet_b4", "efficientnet_b4_rwightman-23ab8bcd.pth", ""},
    {"efficientnet_b5", "efficientnet_b5_lukemelas-1a07897c.pth", ""},
    {"efficientnet_b6", "efficientnet_b6_lukemelas-24a108a5.pth", ""},
    {"efficientnet_b7", "efficientnet_b7_lukemelas-c5b4e57e.pth", ""},
    {"efficientnet_v2_s", "efficientnet_v2_s-dd5fe13b.pth", ""},
    {"efficientnet_v2_m", "efficientnet_v2_m-dc08266a.pth", ""},
    {"efficientnet_v2_l", "efficientnet_v2_l-59c71312.pth", ""},
    {"googlenet", "googlenet-1378be20.pth", ""},
    {"inception_v3", "inception_v3_google-0cc3c7bd.pth", ""},
    {"maxvit_t", "maxvit_t-bc5ab103.pth", ""},
    {"mnasnet0_5", "mnasnet0.5_top1_67.823-3ffadce67e.pth", ""},
    {"mnasnet0_75", "mnasnet0_75-7090bc5f.pth", ""},
    {"mnasnet1_0", "mnasnet1.0_top1_73.512-f206786ef8.pth", ""},
    {"mnasnet1_3", "mnasnet1_3-a4c69d6f.pth", ""},
    {"mobilenet_v2", "mobilenet_v2-b0353104.pth", "mobilenet_v2-7ebf99e0.pth"},
    {"mobilenet_v3_large", "mobilenet_v3_large-8738ca79.pth", "mobilenet_v3_large-5c1a4163.pth"},
    {"mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth", ""},
    {"regnet_y_400mf", "regnet_y_400mf-c65dace8.pth", "regnet_y_400mf-e6988f5f.pth"},
    {"regnet_y_800mf", "regnet_y_800mf-1b27b58c.pth", "regnet_y_800mf-58fc7688.pth"},
    {"regnet_y_1_6gf", "regnet_y_1_6gf-b11a554e.pth", "regnet_y_1_6gf-0d7bc02a.pth"},
    {"regnet_y_3_2gf", "regnet_y_3_2gf-b5a9779c.pth", "regnet_y_3_2gf-9180c971.pth"},
    {"regnet_y_8gf", "regnet_y_8gf-d0d0e4a8.pth", "regnet_y_8gf-dc2b1b54.pth"},
    {"regnet_y_16gf", "regnet_y_16gf-9e6ed7dd.pth", "regnet_y_16gf-3e4a00f9.pth"},
    {"regnet_y_32gf", "regnet_y_32gf-4dee3f7a.pth", "regnet_y_32gf-8db6d4b5.pth"},
    {"regnet_x_400mf", "regnet_x_400mf-adf1edd5.pth", "regnet_x_400mf-62229a5f.pth"},
    {"regnet_x_800mf", "regnet_x_800mf-ad17e45c.pth", "regnet_x_800mf-94a99ebd.pth"},
    {"regnet_x_1_6gf", "regnet_x_1_6gf-e3633e7f.pth", "regnet_x_1_6gf-a12f2b72.pth"},
    {"regnet_x_3_2gf", "regnet_x_3_2gf-f342aeae.pth", "regnet_x_3_2gf-7071aa85.pth"},
    {"regnet_x_8gf", "regnet_x_8gf-03ceed89.pth", "regnet_x_8gf-2b70d774.pth"},
    {"regnet_x_16gf", "regnet_x_16gf-2007eb11.pth", "regnet_x_16gf-ba3796d7.pth"},
    {"regnet_x_32gf", "regnet_x_32gf-9d47f8d0.pth", "regnet_x_32gf-6eb8fdc6.pth"},
    {"resnet18", "resnet18-f37072fd.pth", ""},
    {"resnet34", "resnet34-b627a593.pth", ""},
    {"resnet50", "resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"},
    {"resnet101", "resnet101-63fe2227.pth", "resnet101-cd907fc2.pth"},
    {"resnet152", "resnet152-394f9c45.pth", "resnet152-f82ba261.pth"},
    {"resnext50_32x4d", "resnext50_32x4d-7cdf4587.pth", "resnext50_32x4d-1a0047aa.pth"},
    {"resnext101_32x8d", "resnext101_32x8d-8ba56ff5.pth", "resnext101_32x8d-110c445d.pth"},
    {"resnext101_64x4d", "resnext101_64x4d-173b62eb.pth", ""},
    {"wide_resnet50_2", "wide_resnet50_2-95faca4d.pth", "wide_resnet50_2-9ba9bcbe.pth"},
    {"wide_resnet101_2", "wide_resnet101_2-32ee1156.pth", "wide_resnet101_2-d733dc28.pth"},
    {"shufflenet_v2_x0_5", "shufflenetv2_x0.5-f707e7126e.pth", ""},
    {"shufflenet_v2_x1_0", "shufflenetv2_x1-5666bf0f80.pth", ""},
    {"shufflenet_v2_x1_5", "shufflenetv2_x1_5-3c479a10.pth", ""},
    {"shufflenet_v2_x2_0", "shufflenetv2_x2_0-8be3c8ee.pth", ""},
    {"squeezenet1_0", "squeezenet1_0-b66bff10.pth", ""},
    {"squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", ""},
    {"swin_t", "swin_t-704ceda3.pth", ""},
    {"swin_s", "swin_s-5e29d889.pth", ""},
    {"swin_b", "swin_b-68c6b09e.pth", ""},
    {"swin_v2_t", "swin_v2_t-b137f0e2.pth", ""},
    {"swin_v2_s", "swin_v2_s-637d8ceb.pth", ""},
    {"swin_v2_b", "swin_v2_b-781e5279.pth", ""},
    {"vgg11", "vgg11-8a719046.pth", ""},
    {"vgg11_bn", "vgg11_bn-6002323d.pth", ""},
    {"vgg13", "vgg13-19584684.pth", ""},
    {"vgg13_bn", "vgg13_bn-abd245e5.pth", ""},
    {"vgg16", "vgg16-397923af.pth", ""},
    {"vgg16_bn", "vgg16_bn-6c64b313.pth", ""},
    {"vgg19", "vgg19-dcbb9e9d.pth", ""},
    {"vgg19_bn", "vgg19_bn-c79401a0.pth", ""},
    {"vit_b_16", "vit_b_16-c867db91.pth", ""},
    {"vit_b_32", "vit_b_32-d86f8d99.pth", ""},
    {"vit_l_16", "vit_l_16-852ce7e3.pth", ""},
    {"vit_l_32", "vit_l_32-c7638314.pth", ""},
}};

struct OpenMmlabRow {
  std::string_view name;
  std::string_view file;
};

// The last two are names of older versions.
constexpr std::string_view kOpenMmlabBase = "https://download.openmmlab.com/";
constexpr std::array<OpenMmlabRow, 50> kOpenMmlab{{
    {"vgg16_caffe", "pretrain/third_party/vgg16_caffe-292e1171.pth"},
    {"detectron/resnet50_caffe", "pretrain/third_party/resnet50_caffe-788b5fa3.pth"},
    {"detectron2/resnet50_caffe", "pretrain/third_party/resnet50_msra-5891d200.pth"},
    {"detectron/resnet101_caffe", "pretrain/third_party/resnet101_caffe-3ad79236.pth"},
    {"detectron2/resnet101_caffe", "pretrain/third_party/resnet101_msra-6cc46731.pth"},
    {"detectron2/resnext101_32x8d", "pretrain/third_party/resnext101_32x8d-1516f1aa.pth"},
    {"resnext50_32x4d", "pretrain/third_party/resnext50-32x4d-0ab1a123.pth"},
    {"resnext101_32x4d", "pretrain/third_party/resnext101_32x4d-a5af3160.pth"},
    {"resnext101_64x4d", "pretrain/third_party/resnext101_64x4d-ee2c6f71.pth"},
    {"contrib/resnet50_gn", "pretrain/third_party/resnet50_gn_thangvubk-ad1730dd.pth"},
    {"detectron/resnet50_gn", "pretrain/third_party/resnet50_gn-9186a21c.pth"},
    {"detectron/resnet101_gn", "pretrain/third_party/resnet101_gn-cac0ab98.pth"},
    {"jhu/resnet50_gn_ws", "pretrain/third_party/resnet50_gn_ws-15beedd8.pth"},
    {"jhu/resnet101_gn_ws", "pretrain/third_party/resnet101_gn_ws-3e3c308c.pth"},
    {"jhu/resnext50_32x4d_gn_ws", "pretrain/third_party/resnext50_32x4d_gn_ws-0d87ac85.pth"},
    {"jhu/resnext101_32x4d_gn_ws", "pretrain/third_party/resnext101_32x4d_gn_ws-34ac1a9e.pth"},
    {"jhu/resnext50_32x4d_gn", "pretrain/third_party/resnext50_32x4d_gn-c7e8b754.pth"},
    {"jhu/resnext101_32x4d_gn", "pretrain/third_party/resnext101_32x4d_gn-ac3bb84e.pth"},
    {"msra/hrnetv2_w18_small", "pretrain/third_party/hrnetv2_w18_small-b5a04e21.pth"},
    {"msra/hrnetv2_w18", "pretrain/third_party/hrnetv2_w18-00eb2006.pth"},
    {"msra/hrnetv2_w32", "pretrain/third_party/hrnetv2_w32-dc9eeb4f.pth"},
    {"msra/hrnetv2_w40", "pretrain/third_party/hrnetv2_w40-ed0b031c.pth"},
    {"msra/hrnetv2_w48", "pretrain/third_party/hrnetv2_w48-d2186c55.pth"},
    {"bninception_caffe", "pretrain/third_party/bn_inception_caffe-ed2e8665.pth"},
    {"kin400/i3d_r50_f32s2_k400", "pretrain/third_party/i3d_r50_f32s2_k400-2c57e077.pth"},
    {"kin400/nl3d_r50_f32s2_k400", "pretrain/third_party/nl3d_r50_f32s2_k400-fa7e7caa.pth"},
    {"res2net101_v1d_26w_4s", "pretrain/third_party/res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth"},
    {"regnetx_400mf", "pretrain/third_party/regnetx_400mf-a5b10d96.pth"},
    {"regnetx_800mf", "pretrain/third_party/regnetx_800mf-1f4be4c7.pth"},
    {"regnetx_1.6gf", "pretrain/third_party/regnetx_1.6gf-5791c176.pth"},
    {"regnetx_3.2gf", "pretrain/third_party/regnetx_3.2gf-c2599b0f.pth"},
    {"regnetx_4.0gf", "pretrain/third_party/regnetx_4.0gf-a88f671e.pth"},
    {"regnetx_6.4gf", "pretrain/third_party/regnetx_6.4gf-006af45d.pth"},
    {"regnetx_8.0gf", "pretrain/third_party/regnetx_8.0gf-3c68abe7.pth"},
    {"regnetx_12gf", "pretrain/third_party/regnetx_12gf-4c2a3350.pth"},
    {"resnet18_v1c", "pretrain/third_party/resnet18_v1c-b5776b93.pth"},
    {"resnet50_v1c", "pretrain/third_party/resnet50_v1c-2cccc1ad.pth"},
    {"resnet101_v1c", "pretrain/third_party/resnet101_v1c-e67eebb6.pth"},
    {"mmedit/vgg16", "mmediting/third_party/vgg_state_dict.pth"},
    {"mmedit/res34_en_nomixup", "mmediting/third_party/model_best_resnet34_En_nomixup.pth"},
    {"mmedit/mobilenet_v2", "mmediting/third_party/mobilenet_v2.pth"},
    {"contrib/mobilenet_v3_large", "pretrain/third_party/mobilenet_v3_large-bc2c3fd3.pth"},
    {"contrib/mobilenet_v3_small", "pretrain/third_party/mobilenet_v3_small-47085aa1.pth"},
    {"resnest50", "pretrain/third_party/resnest50_d2-7497a55b.pth"},
    {"resnest101", "pretrain/third_party/resnest101_d2-f3b931b2.pth"},
    {"resnest200", "pretrain/third_party/resnest200_d2-ca88e41f.pth"},
    {"darknet53", "pretrain/third_party/darknet53-a628ea1b.pth"},
    {"mmdet/mobilenet_v2", "mmdetection/v2.0/third_party/mobilenet_v2_batch256_imagenet-ff34753d.pth"},
    {"resnet50_caffe", "pretrain/third_party/resnet50_caffe-788b5fa3.pth"},
    {"resnet101_caffe", "pretrain/third_party/resnet101_caffe-3ad79236.pth"},
}};

}  // namespace

std::vector<std::pair<std::string, std::string>> torchvision_urls() {
  std::vector<std::pair<std::string, std::string>> urls;
  const auto add = [&urls](std::string name, std::string_view file) {
    urls.emplace_back(std::move(name), cat(kTorchvisionBase, file));
  };
  for (const TorchvisionRow& row : kTorchvision) {
    add(std::string(row.name), row.v1);
    add(cat(row.name, ".imagenet1k_v1"), row.v1);
    if (!row.v2.empty()) add(cat(row.name, ".imagenet1k_v2"), row.v2);
    add(cat(row.name, ".default"), row.v2.empty() ? row.v1 : row.v2);
  }
  // Spellings of torchvision before 0.13.
  add("inception_v3_google", "inception_v3_google-0cc3c7bd.pth");
  add("shufflenetv2_x0.5", "shufflenetv2_x0.5-f707e7126e.pth");
  add("shufflenetv2_x1.0", "shufflenetv2_x1-5666bf0f80.pth");
  return urls;
}

std::vector<std::pair<std::string, std::string>> open_mmlab_urls() {
  std::vector<std::pair<std::string, std::string>> urls;
  for (const OpenMmlabRow& row : kOpenMmlab) urls.emplace_back(std::string(row.name), cat(kOpenMmlabBase, row.file));
  return urls;
}

}  // namespace castor::strategy
