#include "common/error_catalogue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace ps {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(ErrorCatalogueTest, EveryEntryIsWholeAndInAGroup) {
  std::set<std::string> titles;
  for (const ErrorEntry& entry : ErrorCatalogue()) {
    const std::string name = ErrorIdName(entry.id);
    EXPECT_EQ(FindError(entry.id), &entry) << name;
    EXPECT_TRUE(titles.insert(entry.title).second) << name << ": " << entry.title;
    for (const char* text : {entry.title, entry.cause, entry.next}) {
      EXPECT_GT(std::string(text).size(), 5u) << name;
      EXPECT_THAT(text, Not(HasSubstr("  "))) << name;
    }
    EXPECT_EQ(std::string(entry.cause).back(), '.') << name;
    EXPECT_EQ(std::string(entry.next).back(), '.') << name;
    EXPECT_NE(std::string(entry.title).back(), '.') << name;
    bool grouped = false;
    for (const ErrorGroup& group : ErrorGroups()) {
      const int number = static_cast<int>(entry.id);
      grouped = grouped || (number >= group.first && number < group.first + 100);
    }
    EXPECT_TRUE(grouped) << name;
  }
}

TEST(ErrorCatalogueTest, EveryCodeHasAnIdForWhatHasNoneOfItsOwn) {
  for (int i = 0; i <= static_cast<int>(ErrorCode::kIo); ++i) {
    const auto code = static_cast<ErrorCode>(i);
    const Error error{code, "x"};
    ASSERT_NE(FindError(error.id), nullptr) << i;
    EXPECT_EQ(FindError(error.id)->code, code);
    EXPECT_TRUE(IsGeneric(error.id));
  }
  EXPECT_EQ(Error().id, ErrorId::kInternal);
}

TEST(ErrorCatalogueTest, AnIdBringsItsCode) {
  const Error error{ErrorId::kJobUnknown, "there is no job 7"};
  EXPECT_EQ(error.code, ErrorCode::kNotFound);
  EXPECT_EQ(ErrorLine(error), "DS-E0801: there is no job 7");
  EXPECT_EQ(ErrorLine(Annotate(error, "x: ")), "DS-E0801: x: there is no job 7");
  EXPECT_FALSE(IsGeneric(error.id));
}

TEST(ErrorCatalogueTest, CodesAreReadAsPeopleTypeThem) {
  for (const char* text : {"DS-E0801", "ds-e0801", "E0801", "e801", "0801", "801"}) {
    EXPECT_EQ(ParseErrorId(text), ErrorId::kJobUnknown) << text;
  }
  for (const char* text : {"", "DS-", "DS-E", "DS-E08o1", "0", "-801", "801 ", "08011", "x801"}) {
    EXPECT_FALSE(ParseErrorId(text).has_value()) << text;
  }
  EXPECT_EQ(FindError(*ParseErrorId("DS-E9998")), nullptr);
}

}  // namespace
}  // namespace ps
