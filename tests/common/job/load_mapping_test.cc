#include "common/job/load_mapping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ps {
namespace {

using ::testing::HasSubstr;

using Pairs = std::vector<std::pair<std::string, std::string>>;

ModelParts Source() {
  return {{{"linear0.weight", {16, 8}, 0, false},
           {"linear0.bias", {16}, 128, false},
           {"linear1.weight", {3, 16}, 144, false},
           {"linear1.bias", {3}, 192, false},
           {"norm.steps", {1}, 195, true}},
          {{"users", 4}, {"items", 4}}};
}

// Wider, and a layer deeper.
ModelParts Job() {
  return {{{"linear0.weight", {20, 8}, 0, false},
           {"linear0.bias", {20}, 160, false},
           {"linear1.weight", {20, 20}, 180, false},
           {"linear1.bias", {20}, 580, false},
           {"linear2.weight", {3, 20}, 600, false},
           {"linear2.bias", {3}, 660, false},
           {"norm.steps", {1}, 663, true}},
          {{"users", 6}, {"films", 4}}};
}

LoadSourceSpec Spec(std::vector<std::string> tensors, std::vector<std::string> tables = {},
                    Pairs rename = {}, bool grow = false) {
  LoadSourceSpec spec;
  spec.from = "1@2";
  spec.tensors = std::move(tensors);
  spec.tables = std::move(tables);
  spec.rename = std::move(rename);
  spec.grow = grow;
  return spec;
}

// "source>job" of each pair.
std::vector<std::string> Mapped(const LoadSourceSpec& spec, const ModelParts& from = Source(),
                                const ModelParts& to = Job()) {
  const auto mapping = MapLoad(spec, from, to);
  EXPECT_TRUE(mapping.ok()) << mapping.error().message;
  std::vector<std::string> names;
  if (!mapping.ok()) return names;
  for (const LoadPair& pair : mapping->tensors) {
    names.push_back(from.tensors[pair.from].name + ">" + to.tensors[pair.to].name);
  }
  for (const LoadPair& pair : mapping->tables) {
    names.push_back(from.tables[pair.from].name + ">" + to.tables[pair.to].name);
  }
  return names;
}

std::string ErrorOf(const LoadSourceSpec& spec, const ModelParts& from = Source(),
                    const ModelParts& to = Job()) {
  const auto mapping = MapLoad(spec, from, to);
  if (mapping.ok()) return "";
  EXPECT_EQ(mapping.error().code, ErrorCode::kInvalid);
  return mapping.error().message;
}

using Names = std::vector<std::string>;

TEST(LoadMappingTest, PatternsNameWhatIsLoaded) {
  EXPECT_EQ(Mapped(Spec({"*"}), Source(), Source()),
            (Names{"linear0.weight>linear0.weight", "linear0.bias>linear0.bias",
                   "linear1.weight>linear1.weight", "linear1.bias>linear1.bias",
                   "norm.steps>norm.steps"}));
  EXPECT_EQ(Mapped(Spec({"*.bias"}), Source(), Source()),
            (Names{"linear0.bias>linear0.bias", "linear1.bias>linear1.bias"}));
  EXPECT_EQ(Mapped(Spec({"linear?.b*s", "linear0.*"}), Source(), Source()),
            (Names{"linear0.weight>linear0.weight", "linear0.bias>linear0.bias",
                   "linear1.bias>linear1.bias"}));
  EXPECT_EQ(Mapped(Spec({}, {"*"}), Source(), Source()), (Names{"users>users", "items>items"}));
}

TEST(LoadMappingTest, LayersFeedThoseOfADeeperModel) {
  EXPECT_EQ(Mapped(Spec({"linear*"}, {}, {{"linear1.*", "linear2.*"}}, /*grow=*/true)),
            (Names{"linear0.weight>linear0.weight", "linear0.bias>linear0.bias",
                   "linear1.weight>linear2.weight", "linear1.bias>linear2.bias"}));
}

TEST(LoadMappingTest, ANameComesBeforeABeginningAndALongOneBeforeAShort) {
  const ModelParts from{
      {{"a.b.c", {1}, 0, false}, {"a.b.d", {1}, 1, false}, {"a.e", {1}, 2, false}}, {}};
  const ModelParts to{
      {{"one", {1}, 0, false}, {"two.d", {1}, 1, false}, {"three.e", {1}, 2, false}}, {}};
  EXPECT_EQ(
      Mapped(Spec({"*"}, {}, {{"a.*", "three.*"}, {"a.b.*", "two.*"}, {"a.b.c", "one"}}), from, to),
      (Names{"a.b.c>one", "a.b.d>two.d", "a.e>three.e"}));
}

TEST(LoadMappingTest, TablesHaveOtherNamesAndGrowInWidth) {
  EXPECT_EQ(Mapped(Spec({}, {"*"}, {{"items", "films"}}, /*grow=*/true)),
            (Names{"users>users", "items>films"}));
  EXPECT_THAT(ErrorOf(Spec({}, {"users"})),
              HasSubstr("table `users` has rows of 4 values, in the job of 6: `grow: true`"));
  EXPECT_THAT(ErrorOf(Spec({}, {"users"}, {}, /*grow=*/true), Job(), Source()),
              HasSubstr("they are wider, and nothing is cut off"));
}

TEST(LoadMappingTest, APatternThatNamesNothingSaysWhatIsNearest) {
  EXPECT_THAT(ErrorOf(Spec({"linear0.wieght"})),
              HasSubstr("tensors: `linear0.wieght` names no tensor of the source, did you mean "
                        "`linear0.weight`?"));
  EXPECT_THAT(ErrorOf(Spec({"convolution*"})), HasSubstr("there are `linear0.weight`, "));
  EXPECT_THAT(ErrorOf(Spec({}, {"user"})), HasSubstr("did you mean `users`?"));
}

TEST(LoadMappingTest, ATensorWithoutAPlaceIsAnError) {
  EXPECT_THAT(ErrorOf(Spec({}, {"items"})),
              HasSubstr("table `items` has no place in the job's model: "));
  EXPECT_THAT(ErrorOf(Spec({"linear0.bias"}, {}, {{"linear0.bias", "linear9.bias"}})),
              HasSubstr("tensor `linear0.bias`, renamed to `linear9.bias`, has no place in the "
                        "job's model: did you mean `linear"));
}

TEST(LoadMappingTest, ShapesAreEqualOrGrow) {
  EXPECT_THAT(ErrorOf(Spec({"linear0.weight"})),
              HasSubstr("has the shape [16, 8], in the job it is [20, 8]: `grow: true`"));
  EXPECT_THAT(ErrorOf(Spec({"linear0.weight"}, {}, {}, true), Job(), Source()),
              HasSubstr("it is larger, and nothing is cut off"));
  EXPECT_THAT(ErrorOf(Spec({"linear0.bias"}, {}, {{"linear0.bias", "linear0.weight"}}, true)),
              HasSubstr("it has another number of dimensions"));
  // Larger in one dimension, smaller in another.
  EXPECT_THAT(ErrorOf(Spec({"linear1.weight"}, {}, {{"linear1.weight", "linear0.weight"}}, true)),
              HasSubstr("nothing is cut off"));
}

TEST(LoadMappingTest, CountersGoToCounters) {
  EXPECT_THAT(ErrorOf(Spec({"norm.steps"}, {}, {{"norm.steps", "linear2.bias"}}, true)),
              HasSubstr("is a counter, in the job it is not"));
  EXPECT_EQ(Mapped(Spec({"norm.*"})), Names{"norm.steps>norm.steps"});
}

TEST(LoadMappingTest, APlaceHasOneSource) {
  EXPECT_THAT(
      ErrorOf(Spec({"linear0.bias", "linear1.bias"}, {},
                   {{"linear0.bias", "linear2.bias"}, {"linear1.bias", "linear2.bias"}}, true),
              Source(), Job()),
      HasSubstr("has the place of"));
  LoadClaims claims;
  const auto first = MapLoad(Spec({"linear1.*"}, {"users"}), Source(), Source());
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(claims.Add(*first, Source(), "checkpoint.load[0] (1@2): ").ok());
  const auto second = MapLoad(Spec({"linear*.bias"}), Source(), Source());
  ASSERT_TRUE(second.ok());
  const Status added = claims.Add(*second, Source(), "checkpoint.load[1] (3@4): ");
  ASSERT_FALSE(added.ok());
  EXPECT_EQ(
      added.error().message,
      "checkpoint.load[1] (3@4): tensor `linear1.bias` of the job has another source already: "
      "checkpoint.load[0] (1@2)");
  const auto third = MapLoad(Spec({}, {"*"}), Source(), Source());
  ASSERT_TRUE(third.ok());
  EXPECT_FALSE(claims.Add(*third, Source(), "x").ok());
}

TEST(LoadMappingTest, ARenameOfNothingIsAnError) {
  EXPECT_THAT(
      ErrorOf(Spec({"linear1.bias"}, {}, {{"linear0.bais", "linear2.bias"}})),
      HasSubstr("rename: `linear0.bais` is the name of nothing that is loaded, did you mean "
                "`linear0.bias`?"));
}

TEST(LoadMappingTest, AllFindingsAreToldAtOnceAndNameTheirSource) {
  JobSpec spec;
  spec.checkpoint.load = {LoadSourceSpec(), Spec({"none", "linear0.weight"}, {"nobody"})};
  const auto mapping = MapLoadSource(spec, 1, Source(), Job());
  ASSERT_FALSE(mapping.ok());
  const std::string& text = mapping.error().message;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << text;
  std::size_t named = 0;
  for (std::size_t at = 0; (at = text.find("checkpoint.load[1] (1@2): ", at)) != std::string::npos;
       ++at) {
    ++named;
  }
  EXPECT_EQ(named, 3u) << text;
}

TEST(LoadMappingTest, PartsOfALayoutCountThroughItsTables) {
  control::LayoutT layout;
  for (const auto rule : {control::TableRule::Sgd, control::TableRule::Maximum}) {
    auto table = std::make_unique<control::TableInfoT>();
    table->rule = rule;
    table->elements = 12;
    auto tensor = std::make_unique<control::TensorInfoT>();
    tensor->name = rule == control::TableRule::Sgd ? "w" : "steps";
    tensor->offset = 6;
    tensor->elements = 6;
    for (const std::int64_t size : {2, 3}) {
      tensor->shape.push_back(std::make_unique<control::ExtentT>());
      tensor->shape.back()->size = size;
    }
    table->tensors.push_back(std::move(tensor));
    layout.tables.push_back(std::move(table));
  }
  const ModelParts parts = ModelParts::Of(layout).value();
  ASSERT_EQ(parts.tensors.size(), 2u);
  EXPECT_EQ(parts.tensors[0].begin, 6u);
  EXPECT_EQ(parts.tensors[1].begin, 18u);
  EXPECT_FALSE(parts.tensors[0].counter);
  EXPECT_TRUE(parts.tensors[1].counter);
  EXPECT_EQ(parts.tensors[1].shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(parts.tensors[1].elements(), 6u);
  // It came over a wire.
  control::TensorInfoT& tensor = *layout.tables[1]->tensors[0];
  tensor.offset = 7;
  EXPECT_FALSE(ModelParts::Of(layout).ok());
  tensor.offset = 6;
  tensor.shape[0]->size = 3;
  EXPECT_FALSE(ModelParts::Of(layout).ok());
}

TEST(LoadMappingTest, AShapeMustHaveTheElementsOfItsTensor) {
  const auto fits = [](std::vector<std::int64_t> shape, std::uint64_t elements) {
    return ModelParts::Tensor::Of("t", std::move(shape), elements, 0, false).ok();
  };
  EXPECT_TRUE(fits({}, 1));
  EXPECT_TRUE(fits({2, 3}, 6));
  EXPECT_TRUE(fits({2, 0}, 0));
  EXPECT_FALSE(fits({2, 3}, 5));
  EXPECT_FALSE(fits({-2, -3}, 6));
  EXPECT_FALSE(fits({std::int64_t{1} << 32, std::int64_t{1} << 32, 4}, 0));
  EXPECT_FALSE(fits({std::int64_t{1} << 62, 4, 0}, 0));
  EXPECT_FALSE(fits({0, -1}, 0));
}

}  // namespace
}  // namespace ps
