"""The settings of Sphinx for the documentation, which `make docs` builds into build/docs."""

import inspect
import re
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import signature, stringify_signature

ROOT = Path(__file__).resolve().parent.parent

project = "fastlstm"
author = "The fastlstm authors"
(release,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp"  # the copy button leaves out line numbers and prompts
# A custom section, because napoleon would take the text before a colon in "Returns" for a type.
napoleon_custom_sections = ["Returns"]
default_role = "py:obj"  # `name` in a docstring is code, and a link if the name is documented
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
highlight_language = "text"  # the language of a code block that names no language
html_theme = "furo"
html_title = f"fastlstm {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]


def constructor(app, what, name, obj, options, shown, returns):
    """Returns the signature of a class for autodoc, from its `__init__`.

    By itself autodoc would take the signature from `__new__`, which here accepts any arguments. For
    a class whose `__init__` passes `*args` on, the signature is the one of a base class.
    """
    if what != "class":
        return None
    for base in obj.__mro__:
        if inspect.isfunction(vars(base).get("__init__")):
            found = signature(base.__init__, bound_method=True)
            if "args" not in found.parameters:
                text = stringify_signature(
                    found, show_return_annotation=False, unqualified_typehints=True
                )
                return text.replace("<factory>", "..."), None
    return None


def setup(app):
    # The page shows one signature of `convert`, and not its five overloads.
    analyzer = ModuleAnalyzer.for_module("fastlstm.convert")
    analyzer.analyze()
    analyzer.overloads.clear()
    app.connect("autodoc-process-signature", constructor)
