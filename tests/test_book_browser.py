"""The book in headless Chromium, with nothing but the book to be reached."""

import http.server
import os
import re
import shutil
import threading
from functools import partial

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium, chromium-browser, google-chrome or chrome on the path; name one by $CHROMIUM",
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(book):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(book)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as runner:
        started = runner.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """`visit(place, **context)`: the page there; requests to elsewhere and errors are gathered in `problems`."""
    contexts, problems = [], []

    def note(request):
        if not request.url.startswith((address, "data:", "blob:")):
            problems.append(f"external request: {request.url}")

    def failed(request):
        if request.failure != "net::ERR_ABORTED":  # a page that is left while its pictures load
            problems.append(f"failed: {request.url} {request.failure}")

    def visit(place, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("request", note)
        page.on("requestfailed", failed)
        page.on("response", lambda r: problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.on("pageerror", lambda error: problems.append(f"{place}: {error}"))
        page.on("console", lambda m: problems.append(f"{place}: {m.text}") if m.type == "error" else None)
        page.goto(f"{address}/{place}", wait_until="load")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not problems


def places(book):
    found = [path.relative_to(book).as_posix() for path in sorted(book.rglob("*.html"))]
    return [place for place in found if not place.startswith(("_static/", "_modules/"))]


def test_every_page_loads_whole_from_the_book_alone_and_fits_a_phone(book, visit):
    page = visit("index.html", viewport={"width": 360, "height": 800})
    base = page.url.removesuffix("index.html")
    wide, unloaded, bent, raw = [], [], [], []
    for place in places(book):
        page.goto(base + place, wait_until="load")
        broken = page.evaluate(
            """async () => {
                const images = [...document.images];
                images.forEach(image => image.loading = 'eager');
                await Promise.allSettled(images.map(image => image.decode()));
                return images.filter(image => !image.naturalWidth).map(image => image.src);
            }"""
        )
        unloaded += [f"{place}: {source}" for source in broken]
        shapes = page.evaluate(
            """[...document.images].filter(image => image.clientHeight).map(image => [
                image.src, image.clientWidth / image.clientHeight, image.naturalWidth / image.naturalHeight])"""
        )
        bent += [f"{place}: {source}" for source, shown, true in shapes if abs(shown / true - 1) > 0.03]
        raw += page.evaluate(
            """() => {
                const texts = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
                const found = [];
                while (texts.nextNode()) {
                    const text = texts.currentNode;
                    if (!text.parentElement.closest('pre, code, script, style') && /\\$[^$ ][^$]*\\$/.test(text.data))
                        found.push(text.data);
                }
                return found;
            }"""
        )
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 360:
            wide.append(f"{place}: {width}")
    assert not unloaded
    assert not wide
    assert not bent  # pictures in the proportions of their files
    assert not raw  # formulas in captions, too


def test_mathematics_is_set(visit):
    page = visit("vae.html")
    page.wait_for_function("document.querySelectorAll('mjx-container').length > 20")
    assert page.locator("mjx-merror").count() == 0
    height = page.locator("mjx-container[display=true]").first.bounding_box()["height"]
    assert height > 15
    fonts = page.evaluate(
        "document.fonts.ready.then(f => [...f].filter(x => x.status === 'loaded').map(x => x.family))"
    )
    assert any("MJX" in font or "MathJax" in font for font in fonts)
    assert "\\mathcal" not in page.locator("main").inner_text().replace("r'\\mathcal", "")


def test_the_search_finds_a_paper(visit):
    page = visit("search.html?q=marginalising+changepoints")
    page.wait_for_selector("#search-results li")
    links = page.locator("#search-results li a").evaluate_all("links => links.map(link => link.href)")
    assert any("changepoints.html" in link for link in links)


def test_search_opens_by_keys_and_leads_to_results(visit):
    page = visit("index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("noisy weights")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li")
    assert "mdl_noisy_weights" in page.locator("#search-results").inner_html()


def test_the_copy_button_copies_bibtex(visit):
    page = visit("book/gallery.html", permissions=["clipboard-read", "clipboard-write"])
    card = page.locator(".vinb-card", has_text="Figure 4").first
    assert not card.locator("pre").is_visible()
    card.locator("summary").focus()
    page.keyboard.press("Enter")  # by keyboard alone
    card.locator("pre").wait_for(state="visible")
    card.locator("div.highlight").hover()
    card.locator("button.copybtn").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('@misc'))")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("@inproceedings{kingma2014aevb,")
    assert copied.count("{") == copied.count("}")
    assert re.search(r"@misc\{vinb-vae-(cpu|paper)-[0-9a-f]{8}-figure-4,", copied)


def luminance(colour):
    red, green, blue = (float(value) / 255 for value in re.findall(r"[\d.]+", colour)[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """Of two luminances, as WCAG has it."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", ["index.html", "vae.html", "book/results.html"])
def test_light_and_dark(visit, scheme, place):
    page = visit(place, color_scheme=scheme)
    colour = "selector => getComputedStyle(document.querySelector(selector)).color"
    background = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (background > 0.8) == (scheme == "light")
    assert contrast(luminance(page.evaluate(colour, "main p")), background) > 7
    if place == "vae.html":  # the word of a verdict, which has a colour of its own
        assert contrast(luminance(page.evaluate(colour, "td[style*='color: #2e8b57']")), background) > 4.5


def test_keys_and_names_for_screen_readers(visit):
    page = visit("vae.html")
    page.keyboard.press("Tab")
    focused = "document.activeElement"
    assert "skip" in page.evaluate(f"{focused}.textContent").lower()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main-content"
    assert page.locator("html").get_attribute("lang")
    assert page.locator("article h1").count() == 1
    for button in page.locator("button:visible").all():
        name = button.get_attribute("aria-label") or button.get_attribute("title") or button.inner_text()
        assert (name or "").strip()


LONG = [  # pages on which axe takes half a minute
    pytest.param(place, scheme, marks=pytest.mark.exhaustive)
    for place in ("changepoints.html", "book/gallery.html", "book/results.html")
    for scheme in ("light", "dark")
]


@pytest.mark.parametrize(
    ("place", "scheme"),
    [("index.html", "light"), ("index.html", "dark"), ("book/api/programs.html", "dark"), *LONG],
)
def test_axe_finds_no_serious_barrier(visit, place, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = visit(place, color_scheme=scheme)
    found = (
        axe.Axe().run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]
    )
    serious = [
        (each["id"], each["nodes"][0]["html"][:200])
        for each in found
        if each["impact"] in ("serious", "critical")
        and each["id"] != "definition-list"  # Sphinx's own markup
    ]
    assert not serious


def test_a_figure_of_the_gallery_leads_to_its_place(visit):
    page = visit("book/gallery.html")
    page.locator(".vinb-card", has_text="Figure 4").first.locator(".vinb-figure a").click()
    page.wait_for_url(re.compile(r"/vae\.html#(cpu|paper)-figure-4$"))
    page.wait_for_function("document.querySelector(location.hash).getBoundingClientRect().top < 300")
