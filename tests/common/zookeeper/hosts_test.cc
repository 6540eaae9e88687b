#include "common/zookeeper/hosts.h"

#include <gtest/gtest.h>

#include <string>

namespace ps::zk {
namespace {

TEST(HostsTest, TheChrootIsWhatFollowsTheLastHost) {
  const auto one = ParseHosts("127.0.0.1:2181");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->servers, "127.0.0.1:2181");
  EXPECT_EQ(one->chroot, "");
  const auto two = ParseHosts("a:1,[::1]:2/ds/test");
  ASSERT_TRUE(two.ok());
  EXPECT_EQ(two->servers, "a:1,[::1]:2");
  EXPECT_EQ(two->chroot, "/ds/test");
  EXPECT_EQ(ParseHosts("a:1/")->chroot, "");
  EXPECT_EQ(ParseHosts("a:1/ds/")->chroot, "/ds");
}

TEST(HostsTest, WhatIsMalformedIsRefusedAndQuoted) {
  for (const char* hosts : {"", "host", "host:", ":1", "host:0", "host:70000", "host:12x",
                            "host:-1", "a:1,,b:2", "a:1/x,b:2", "a:1//x", "a:1,", "a:1/../x"}) {
    const auto parsed = ParseHosts(hosts);
    ASSERT_FALSE(parsed.ok()) << hosts;
    EXPECT_EQ(parsed.error().code, ErrorCode::kInvalid);
    EXPECT_NE(parsed.error().message.find(std::string("'") + hosts + "'"), std::string::npos);
  }
}

TEST(HostsTest, PathsHaveNoEmptyOrDottedNames) {
  for (const char* path : {"/", "/a", "/a/b", "/a.b/..c"}) EXPECT_TRUE(ValidPath(path)) << path;
  for (const char* path : {"", "a", "//", "/a/", "/a//b", "/.", "/a/../b"}) {
    EXPECT_FALSE(ValidPath(path)) << path;
  }
  EXPECT_FALSE(ValidPath(std::string("/a\0b", 4)));
}

}  // namespace
}  // namespace ps::zk
