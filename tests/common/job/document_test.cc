#include "common/job/document.h"

#include <gtest/gtest.h>

namespace ps::job {
namespace {

std::string YamlError(const std::string& text) {
  const auto result = ParseYamlDocument(text, "f.yaml");
  return result.ok() ? "" : result.error().message;
}

std::string JsonError(const std::string& text) {
  const auto result = ParseJsonDocument(text, "f");
  return result.ok() ? "" : result.error().message;
}

TEST(DocumentTest, ATreeKeepsKindsTextAndLines) {
  const auto root = ParseYamlDocument("a: 1\nb:\n  c: [x, 'y']\nd: ~\n", "f.yaml");
  ASSERT_TRUE(root.ok()) << root.error().message;
  ASSERT_EQ(root->kind, Node::Kind::kMap);
  EXPECT_EQ(root->Find("a")->text, "1");
  EXPECT_EQ(root->Find("a")->line, 1);
  EXPECT_FALSE(root->Find("a")->quoted);
  const Node* list = root->Find("b")->Find("c");
  ASSERT_NE(list, nullptr);
  EXPECT_EQ(list->line, 3);
  ASSERT_EQ(list->items.size(), 2U);
  EXPECT_TRUE(list->items[1].quoted);
  EXPECT_EQ(root->Find("d")->kind, Node::Kind::kNull);
  EXPECT_EQ(root->Find("missing"), nullptr);
}

TEST(DocumentTest, ADuplicateKeyNamesBothLines) {
  EXPECT_EQ(YamlError("a: 1\nb: 2\na: 3\n"), "f.yaml:3: `a` is given twice, first in line 1");
  EXPECT_EQ(YamlError("m: {x: 1, x: 2}\n"), "f.yaml:1: `x` is given twice, first in line 1");
}

TEST(DocumentTest, TheSameKeyInTwoMapsIsNoDuplicate) {
  EXPECT_EQ(YamlError("- {x: 1}\n- {x: 2}\n"), "");
  EXPECT_EQ(YamlError("a: {x: {x: 1}, y: {x: 1}}\nb: {x: 1}\n"), "");
  EXPECT_EQ(YamlError("[{x: 1}, {x: 2}]\n"), "");
}

TEST(DocumentTest, AliasesAreRefusedSoThatNothingExpands) {
  EXPECT_EQ(YamlError("a: &x [1, 2]\nb: [*x, *x]\n"),
            "f.yaml:2: aliases (*name) are not supported, write the value out");
  std::string bomb = "a0: &a0 [lol]\n";
  for (int i = 1; i < 20; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + before + "," + before +
            "," + before + "]\n";
  }
  EXPECT_NE(YamlError(bomb).find("aliases"), std::string::npos);
}

TEST(DocumentTest, ADeepDocumentIsRefused) {
  EXPECT_NE(YamlError(std::string(200, '[') + std::string(200, ']')).find("nested deeper than 32"),
            std::string::npos);
  EXPECT_NE(JsonError(std::string(200'000, '[') + std::string(200'000, ']')).find("nested deeper"),
            std::string::npos);
  EXPECT_NE(YamlError(std::string(500'000, '[')), "");
  EXPECT_NE(YamlError(std::string(500'000, '{')), "");
}

TEST(DocumentTest, ALargeDocumentIsRefusedUnread) {
  const std::string text = "a: " + std::string(kDocumentBytesMax, 'x');
  EXPECT_NE(YamlError(text).find("at most 1 MiB"), std::string::npos);
  EXPECT_NE(JsonError(text).find("at most 1 MiB"), std::string::npos);
}

TEST(DocumentTest, ADocumentOfManyValuesIsRefused) {
  std::string text = "[";
  for (std::size_t i = 0; i <= kDocumentNodesMax; ++i) text += "1,";
  EXPECT_NE(YamlError(text + "1]").find("more than 100000 values"), std::string::npos);
  EXPECT_NE(JsonError(text + "1]").find("more than 100000 values"), std::string::npos);
}

TEST(DocumentTest, BadSyntaxNamesTheLine) {
  EXPECT_EQ(YamlError("a: 1\nb: [1, 2\n").rfind("f.yaml:", 0), 0U);
  EXPECT_NE(YamlError("a: 1\n\tb: 2\n").find("is not valid YAML"), std::string::npos);
  EXPECT_NE(JsonError("{\"a\": }").find("is not valid JSON"), std::string::npos);
  EXPECT_NE(JsonError("").find("is not valid JSON"), std::string::npos);
}

TEST(DocumentTest, ASecondDocumentIsRefused) {
  EXPECT_NE(YamlError("a: 1\n---\nb: 2\n").find("more than one document"), std::string::npos);
  EXPECT_EQ(YamlError("---\na: 1\n"), "");
}

TEST(DocumentTest, AnEmptyDocumentIsNoMap) {
  EXPECT_NE(YamlError(""), "never accepted as a job, here empty");
  const auto comment = ParseYamlDocument("# nothing\n", "f.yaml");
  EXPECT_TRUE(!comment.ok() || comment->kind == Node::Kind::kNull);
}

TEST(DocumentTest, BytesThatAreNotUtf8AreRefused) {
  EXPECT_EQ(YamlError("a: 1\nb: \xff\n"), "f.yaml:2: holds bytes that are not UTF-8 text");
  EXPECT_NE(YamlError(std::string("a: x\0y\n", 7)), "");
  EXPECT_NE(YamlError("a: \xc0\xaf\n"), "") << "overlong";
  EXPECT_NE(YamlError("a: \xed\xa0\x80\n"), "") << "surrogate";
  EXPECT_NE(YamlError("a: \xe2\x82"), "") << "cut";
  EXPECT_EQ(YamlError("a: \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80\n"), "");
}

TEST(DocumentTest, AKeyThatIsAListIsRefused) {
  EXPECT_NE(YamlError("? [a, b]\n: 1\n").find("a key must be a word"), std::string::npos);
}

TEST(DocumentTest, JsonBecomesTheSameTree) {
  const auto root = ParseJsonDocument(R"({"a": 1, "b": {"c": ["x", true, 1.5, null]}})", "f");
  ASSERT_TRUE(root.ok()) << root.error().message;
  EXPECT_EQ(root->Find("a")->text, "1");
  const Node& list = *root->Find("b")->Find("c");
  ASSERT_EQ(list.items.size(), 4U);
  EXPECT_TRUE(list.items[0].quoted);
  EXPECT_EQ(list.items[1].text, "true");
  EXPECT_EQ(list.items[2].text, "1.5");
  EXPECT_EQ(list.items[3].kind, Node::Kind::kNull);
}

TEST(DocumentTest, ADuplicateJsonKeyIsRefused) {
  EXPECT_EQ(JsonError(R"({"a": 1, "a": 2})"), "f: `a` is given twice");
  EXPECT_EQ(JsonError(R"({"a": {"x": 1}, "b": {"x": 2}})"), "");
}

TEST(DocumentTest, NodesAreDescribedForPeople) {
  const auto root = ParseYamlDocument("[3, abc, '3', true, [], {}, ~, -1.5e3]", "f");
  ASSERT_TRUE(root.ok());
  std::vector<std::string> words;
  for (const auto& item : root->items) words.push_back(DescribeNode(item));
  EXPECT_EQ(words,
            (std::vector<std::string>{"the number 3", "the text `abc`", "the text `3`", "true",
                                      "a list", "a map", "nothing", "the number -1.5e3"}));
}

TEST(DocumentTest, TheNearestWordIsFoundWithinAThirdOfItsLength) {
  const std::vector<std::string> words = {"workers", "batch_size", "epochs", "seed"};
  EXPECT_EQ(NearestWord("workrs", words), "workers");
  EXPECT_EQ(NearestWord("batchsize", words), "batch_size");
  EXPECT_EQ(NearestWord("epoch", words), "epochs");
  EXPECT_EQ(NearestWord("zebra", words), "");
  EXPECT_EQ(NearestWord(std::string(1000, 'a'), words), "");
}

}  // namespace
}  // namespace ps::job
