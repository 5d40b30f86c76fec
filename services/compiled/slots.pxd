# cython: language_level=3
"""Reads and writes the slots of Python objects (`__slots__`, msgspec structs) without looking them up by name.

`offset_of(cls, name)` finds a slot once; `get` and `put` use it. They check nothing: only for objects whose
exact type (or a type derived from it) is the one asked. An unset slot raises AttributeError.
"""

from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_XDECREF

cdef extern from *:
    """
    #include <structmember.h>
    #define MARKETD_SLOT(o, at) (*(PyObject **)((char *)(o) + (at)))
    static Py_ssize_t marketd_offset(PyObject *descriptor, PyObject *cls) {
        if (Py_TYPE(descriptor) != &PyMemberDescr_Type) return -1;
        PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        if (member->type != T_OBJECT_EX && member->type != T_OBJECT) return -1;
        return member->offset;
    }
    static CYTHON_UNUSED PyObject *marketd_new(PyTypeObject *cls) { return cls->tp_alloc(cls, 0); }
    """
    PyObject *MARKETD_SLOT(PyObject *o, Py_ssize_t at)
    Py_ssize_t marketd_offset(object descriptor, object cls)
    object marketd_new(PyTypeObject *cls)


cdef inline Py_ssize_t offset_of(cls, str name) except -1:
    cdef Py_ssize_t at = marketd_offset(getattr(cls, name), cls)
    if at <= 0:
        raise ImportError(f"{cls.__name__}.{name} is no slot")
    return at


cdef inline object get(object o, Py_ssize_t at):
    cdef PyObject *found = MARKETD_SLOT(<PyObject *>o, at)
    if found is NULL:
        raise AttributeError("an unset slot")
    return <object>found


cdef inline PyObject *peek(object o, Py_ssize_t at) noexcept:
    """Borrow what lies in a slot: for comparing identities; not to be kept over any call into Python."""
    return MARKETD_SLOT(<PyObject *>o, at)


cdef extern from *:
    """
    static inline CYTHON_UNUSED void marketd_put(PyObject *o, Py_ssize_t at, PyObject *value) {
        PyObject **slot = (PyObject **)((char *)o + at);
        PyObject *before = *slot;
        Py_INCREF(value);
        *slot = value;
        Py_XDECREF(before);
    }
    """
    void put "marketd_put" (object o, Py_ssize_t at, object value)


cdef extern from *:
    """
    static inline CYTHON_UNUSED void marketd_fill(PyObject *o, Py_ssize_t at, PyObject *value) {
        Py_INCREF(value);
        *(PyObject **)((char *)o + at) = value;
    }
    /* Adds one to a whole number; -1 with an exception where it is none. */
    static CYTHON_UNUSED int marketd_bump(PyObject *o, Py_ssize_t at) {
        PyObject **slot = (PyObject **)((char *)o + at), *before = *slot, *after;
        long long count = before == NULL ? -1 : PyLong_AsLongLong(before);
        if (count == -1 && PyErr_Occurred()) return -1;
        after = PyLong_FromLongLong(count + 1);
        if (after == NULL) return -1;
        *slot = after;
        Py_XDECREF(before);
        return 0;
    }
    """
    void fill "marketd_fill" (object o, Py_ssize_t at, object value)
    int bump "marketd_bump" (object o, Py_ssize_t at) except -1
