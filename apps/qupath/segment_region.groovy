/*
 * Finds the nuclei in the selected annotation with AMA-SAM and puts them into it as detections. QuPath 0.4 to 0.6.
 *
 * Open a slide, draw an annotation and select it, open this file in Automate > Script editor, Run. Nuclei whose centre
 * lies in the annotation come, whole, and replace its detections of an earlier run.
 */

import static qupath.lib.scripting.QP.*

import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import java.nio.file.Files
import javax.imageio.ImageIO
import qupath.lib.io.PathIO
import qupath.lib.regions.RegionRequest

// --- what to change

def address = "http://127.0.0.1:8000"  // of the server, started by `ama-sam serve STUDIES`
def token = ""                         // its AMA_SAM_TOKEN, if it has one
def command = []                       // instead of the server: ["ama-sam"], or its full path
def most = 50_000_000                  // pixels that are sent at once

// ---

def region = getSelectedObject()
if (region == null || !region.isAnnotation())
    throw new IllegalStateException("Select an annotation first")
def roi = region.getROI()
def image = getCurrentServer()
def mpp = image.getPixelCalibration().getAveragedPixelSizeMicrons()  // NaN where the slide does not say
def request = RegionRequest.createInstance(image.getPath(), 1.0, roi)
def json

if (command) {
    def slide = new File(image.getURIs().first()).getPath()
    def folder = Files.createTempDirectory("ama_sam")
    def box = [request.getX(), request.getY(), request.getWidth(), request.getHeight()].join(",")
    def words = command + ["slide", slide, "--region", box, "--outputs", "geojson", "--output_dir", folder.toString()]
    def process = new ProcessBuilder(words).redirectErrorStream(true).start()
    def told = process.getInputStream().getText("UTF-8")
    if (process.waitFor() != 0)
        throw new IOException("ama-sam failed: " + told)
    def file = Files.walk(folder).filter { it.endsWith("nuclei.geojson") }.findFirst().get().toFile()
    json = new JsonSlurper().parse(file, "UTF-8")
} else {
    if ((long) request.getWidth() * request.getHeight() > most)
        throw new IllegalStateException("The annotation is too large to be sent; draw a smaller one, or set 'command'")
    def png = new ByteArrayOutputStream()
    ImageIO.write(image.readRegion(request), "PNG", png)
    def wsi = [location: [0, 0], size: [0, 0], params: mpp > 0 ? [mpp: mpp] : [:]]
    json = send(address + "/infer/wsi_v2/ama_sam?output=json", token, JsonOutput.toJson(wsi), png.toByteArray())
    // from the pixels that were sent to those of the slide
    json.features.each { feature ->
        feature.geometry.coordinates = feature.geometry.coordinates.collect { ring ->
            ring.collect { point -> [point[0] + request.getX(), point[1] + request.getY()] }
        }
    }
}

def text = new ByteArrayInputStream(JsonOutput.toJson(json).getBytes("UTF-8"))
def nuclei = PathIO.readObjectsFromGeoJSON(text).findAll {
    roi.contains(it.getROI().getCentroidX(), it.getROI().getCentroidY())
}
region.removeChildObjects(region.getChildObjects().findAll { it.isDetection() })
region.addChildObjects(nuclei)
fireHierarchyUpdate()
println(nuclei.size() + " nuclei in the annotation")

/** Sends an image and what is asked of it; the nuclei as parsed GeoJSON, an exception with the server's sentence. */
def send(String url, String token, String wsi, byte[] png) {
    def line = UUID.randomUUID().toString()
    def field = "--$line\r\nContent-Disposition: form-data; name="
    def body = new ByteArrayOutputStream()
    body.write((field + "\"wsi\"\r\n\r\n" + wsi + "\r\n").getBytes("UTF-8"))
    body.write((field + "\"file\"; filename=\"region.png\"\r\n\r\n").getBytes("UTF-8"))
    body.write(png)
    body.write("\r\n--$line--\r\n".getBytes("UTF-8"))
    def asked = HttpRequest.newBuilder(URI.create(url))
        .header("Content-Type", "multipart/form-data; boundary=" + line)
        .POST(HttpRequest.BodyPublishers.ofByteArray(body.toByteArray()))
    if (token)
        asked.header("Authorization", "Bearer " + token)
    def answer = HttpClient.newHttpClient().send(asked.build(), HttpResponse.BodyHandlers.ofString())
    if (answer.statusCode() != 200)
        throw new IOException("The server refuses (" + answer.statusCode() + "): " + answer.body())
    return new JsonSlurper().parseText(answer.body())
}
