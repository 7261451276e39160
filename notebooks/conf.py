"""Sphinx settings of the book: ``make book``. Nothing is executed; pages show the committed outputs and records.

Settings from the environment, all optional:

``VINB_BOOK_REPOSITORY``
    address of the repository on GitHub, GitLab or Bitbucket; with it, pages link to their sources.
``VINB_BOOK_BRANCH``
    its branch, ``main`` by default.
``VINB_BOOK_COLAB``, ``VINB_BOOK_BINDER``
    addresses of services for the launch buttons, such as ``https://colab.research.google.com`` and
    ``https://mybinder.org``; they need the repository.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "book"))  # for vinb_book

import vinb  # noqa: E402

project = "vinb"
author = "The vinb developers"
project_copyright = author
version = release = vinb.__version__
language = "en"  # the theme's search lacks words of en_GB

# Groups of the start page, the menu, the gallery and the results. A notebook that is in none comes last.
vinb_themes = {
    "Foundations": ["vae", "programmable_vi"],
    "Uncertain weights": [
        "mdl_noisy_weights",
        "practical_vi",
        "bayes_by_backprop",
        "local_reparameterization",
    ],
    "Gradients that are right": ["reparam_nondiff", "support_match", "smoothness_analysis"],
    "Models": ["changepoints"],
}

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
    "sphinxcontrib.bibtex",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "vinb_book",
]
exclude_patterns = ["**/.ipynb_checkpoints", "*/smoke", "*/cpu", "*/paper"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # captions have formulas
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

default_role = "py:obj"  # docstrings write `vinb.objectives.elbo`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # `Float[Array, "*shape"]` would be read as emphasis
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "vinb"
html_static_path = ["book/static"]
html_css_files = ["vinb.css"]
html_js_files = ["vinb.js"]
html_favicon = "book/static/icon.svg"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_fullscreen_button": False,
    "logo": {"text": "vinb"},
    "navbar_persistent": [],
}
if repository := os.environ.get("VINB_BOOK_REPOSITORY"):
    services = {
        "colab_url": os.environ.get("VINB_BOOK_COLAB"),
        "binderhub_url": os.environ.get("VINB_BOOK_BINDER"),
    }
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": os.environ.get("VINB_BOOK_BRANCH", "main"),
        "path_to_docs": "notebooks",
        "use_repository_button": True,
        "use_source_button": True,
        "use_issues_button": True,
        "launch_buttons": {name: address for name, address in services.items() if address},
    }


def setup(app):
    """The extension copies files when the build is over, and says nothing of parallel builds."""
    mathjax = app.extensions["sphinx-mathjax-offline"]
    mathjax.parallel_read_safe = mathjax.parallel_write_safe = True
