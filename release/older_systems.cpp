// Defines functions that the headers of newer glibc and libstdc++ call and that manylinux_2_28
// (glibc 2.28, libstdc++ of GCC 8) does not export, so that a library that was linked on a newer
// system runs on an older one. They are hidden from other libraries.
// release/build_wheel.py compiles this file into a wheel; tests/symbols.py checks its libraries.
#include <exception>
#include <new>
#include <sstream>
#include <string>

// A build without optimization calls more such functions, so it runs only on newer systems anyway.
#if defined(__GLIBCXX__) && defined(__GLIBC__) && defined(__OPTIMIZE__)

#define FASTLSTM_HIDDEN __attribute__((visibility("hidden"), used))

extern "C" {

// Whether shared_ptr may count references without atomic operations. 0 is always safe.
FASTLSTM_HIDDEN char fastlstm_single_threaded __asm__("__libc_single_threaded") = 0;

[[noreturn]] FASTLSTM_HIDDEN void fastlstm_bad_length() __asm__(
    "_ZSt28__throw_bad_array_new_lengthv");
void fastlstm_bad_length() { throw std::bad_array_new_length(); }

// Newer headers copy and destroy an exception_ptr by _M_addref and _M_release. These use what older
// versions export: exception_ptr(void*), which adds a reference, and ~exception_ptr().
void fastlstm_construct_ptr(void* self,
                            void* exception) __asm__("_ZNSt15__exception_ptr13exception_ptrC1EPv");
void fastlstm_destroy_ptr(void* self);
__asm__(".symver fastlstm_destroy_ptr, _ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");

FASTLSTM_HIDDEN void fastlstm_add_reference(void** self) __asm__(
    "_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void fastlstm_add_reference(void** self) {
  void* counted;  // never destroyed, so the reference stays
  fastlstm_construct_ptr(&counted, *self);
}

FASTLSTM_HIDDEN void fastlstm_release(void** self) __asm__(
    "_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void fastlstm_release(void** self) {
  fastlstm_destroy_ptr(self);
  *self = nullptr;
}

}  // extern "C"

// Compiles the members of string streams that TORCH_CHECK calls for its messages into the library.
template std::ostringstream::basic_ostringstream();
__asm__(".hidden _ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev");
__asm__(".hidden _ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC2Ev");
#if __cplusplus > 201703L
template std::string std::stringbuf::str() const&;
__asm__(".hidden _ZNKRSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv");
template std::string std::stringbuf::str() &&;
__asm__(".hidden _ZNOSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv");
#endif

#endif
