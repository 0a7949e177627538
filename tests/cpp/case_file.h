// Cases for the C++ test programs: a file of arrays, each its size in bytes and its content.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "common.cuh"

// One array of the file, in memory of its own: an element too far is an error the sanitizer sees.
struct Array {
  explicit Array(int64_t n, bool given_ = true)
      : bytes(n),
        memory(n ? std::malloc(n) : nullptr, std::free),
        data(memory.get()),
        given(given_) {}
  int64_t bytes;
  std::shared_ptr<void> memory;
  void* data;
  bool given;
  template <class T>
  hamfast::Maybe<T> maybe() const {
    return given ? hamfast::Maybe<T>(as<T>()) : hamfast::Maybe<T>();
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  template <class T>
  int64_t size() const {
    return bytes / static_cast<int64_t>(sizeof(T));
  }
};

// An array of bytes that make NaN, as float and as double.
inline Array poisoned(int64_t bytes) {
  Array a(bytes);
  if (bytes) std::memset(a.data, 0xff, bytes);
  return a;
}

inline std::vector<Array> read_arrays(const char* path) {
  FILE* file = std::fopen(path, "rb");
  if (!file) std::exit(2);
  std::vector<Array> arrays;
  int64_t bytes;
  while (std::fread(&bytes, sizeof(bytes), 1, file) == 1) {
    Array a(bytes < 0 ? 0 : bytes, bytes >= 0);  // -1: there is none
    bytes = a.bytes;
    if (bytes && std::fread(a.data, 1, bytes, file) != static_cast<size_t>(bytes)) std::exit(2);
    arrays.push_back(a);
  }
  std::fclose(file);
  return arrays;
}

inline void write_arrays(const char* path, const std::vector<Array>& arrays) {
  FILE* file = std::fopen(path, "wb");
  if (!file) std::exit(2);
  for (const Array& a : arrays)
    if (std::fwrite(&a.bytes, sizeof(a.bytes), 1, file) != 1 ||
        (a.bytes && std::fwrite(a.data, 1, a.bytes, file) != static_cast<size_t>(a.bytes)))
      std::exit(2);
  std::fclose(file);
}
