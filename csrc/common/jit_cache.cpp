// Files `<key>.kernel`: a header with a checksum, then what the compiler made. Written under
// another name and renamed, so that any number of processes can start at once and none sees half a
// file.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <system_error>

#include "common/jit.h"

namespace hamfast::jit {
namespace {

namespace fs = std::filesystem;

uint64_t digest(const std::string& text, uint64_t seed) {  // FNV-1a
  uint64_t hash = 14695981039346656037ull ^ seed;
  for (const unsigned char c : text) hash = (hash ^ c) * 1099511628211ull;
  return hash;
}

struct FileHeader {
  char magic[8] = {'h', 'a', 'm', 'f', 'a', 's', 't', '1'};
  uint64_t size = 0, checksum = 0;
};

void notice_once(const std::string& text) {
  static std::once_flag flag;
  std::call_once(flag, [&] { std::fprintf(stderr, "hamfast: %s\n", text.c_str()); });
}

std::string file_name(const std::string& source, const std::vector<Header>& headers,
                      int capability) {
  std::string all = HAMFAST_VERSION " " + std::to_string(capability) + " " +
                    std::to_string(compiler_version()) + source;
  for (const Header& header : headers) all += header.first + '\0' + header.second + '\0';
  char name[64];
  std::snprintf(name, sizeof(name), "%016llx%016llx.kernel",
                static_cast<unsigned long long>(digest(all, 0)),
                static_cast<unsigned long long>(digest(all, 0x9e3779b97f4a7c15ull)));
  return name;
}

// Empty: not there, or not whole.
std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return {};
  FileHeader expected, found;
  std::string content;
  if (file.read(reinterpret_cast<char*>(&found), sizeof(found))) {
    std::error_code error;
    const auto whole = fs::file_size(path, error);
    if (!error && whole == sizeof(found) + found.size) {
      content.resize(found.size);
      file.read(content.data(), static_cast<std::streamsize>(found.size));
    }
  }
  if (std::memcmp(expected.magic, found.magic, sizeof(found.magic)) != 0 || content.empty() ||
      digest(content, 0) != found.checksum) {
    std::fprintf(stderr, "hamfast: the cached kernel %s is damaged; it is compiled anew\n",
                 path.c_str());
    return {};
  }
  return content;
}

// What went wrong, or "".
std::string write_file(const fs::path& path, const std::string& content) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) return error.message();
  std::string name = path.string() + ".XXXXXX";
  const int handle = mkstemp(name.data());
  if (handle < 0) return std::strerror(errno);
  FileHeader header;
  header.size = content.size();
  header.checksum = digest(content, 0);
  FILE* file = fdopen(handle, "wb");
  bool whole = std::fwrite(&header, sizeof(header), 1, file) == 1 &&
               std::fwrite(content.data(), 1, content.size(), file) == content.size();
  const int failed = errno;
  whole = std::fclose(file) == 0 && whole;
  if (whole && std::rename(name.c_str(), path.c_str()) == 0) return {};
  const std::string why = std::strerror(failed ? failed : errno);
  std::remove(name.c_str());
  return why;
}

}  // namespace

std::string cache_folder() {
  auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value ? value : "";
  };
  if (const std::string own = variable("HAMFAST_CACHE"); !own.empty()) return own;
  if (const std::string cache = variable("XDG_CACHE_HOME"); !cache.empty())
    return cache + "/hamfast";
  if (const std::string home = variable("HOME"); !home.empty()) return home + "/.cache/hamfast";
  return {};
}

std::string compile_cached(const std::string& source, const std::vector<Header>& headers,
                           int capability) {
  const std::string folder = cache_folder();
  if (folder.empty()) {
    notice_once(
        "there is no cache folder (HAMFAST_CACHE, XDG_CACHE_HOME and HOME are unset): kernels are "
        "compiled anew in "
        "every process");
    return compile(source, headers, capability);
  }
  const fs::path path = fs::path(folder) / file_name(source, headers, capability);
  std::string image = read_file(path);
  if (!image.empty()) return image;
  image = compile(source, headers, capability);
  const std::string failure = write_file(path, image);
  if (!failure.empty())
    notice_once(
        "the cache folder " + folder + " cannot be written (" + failure +
        "): kernels are compiled anew in every process; HAMFAST_CACHE names another folder");
  return image;
}

}  // namespace hamfast::jit
