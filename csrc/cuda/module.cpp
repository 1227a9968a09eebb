// quamba._C_cuda and quamba._C_emulated: importing one registers its kernels; the module itself holds nothing.

#include <Python.h>

#if defined(QUAMBA_EMULATED)
#define QUAMBA_MODULE _C_emulated
#else
#define QUAMBA_MODULE _C_cuda
#endif
#define QUAMBA_JOIN(a, b) a##b
#define QUAMBA_INIT(name) QUAMBA_JOIN(PyInit_, name)
#define QUAMBA_QUOTE(name) #name
#define QUAMBA_NAME(name) QUAMBA_QUOTE(name)

PyMODINIT_FUNC QUAMBA_INIT(QUAMBA_MODULE)() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, QUAMBA_NAME(QUAMBA_MODULE)};
  return PyModule_Create(&module);
}
