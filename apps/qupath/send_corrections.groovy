/*
 * Sends a region with the corrected nuclei in it to the server, as a labelled image. For QuPath 0.4 to 0.6.
 *
 * Correct all nuclei in a rectangle, select that annotation, open this file in Automate > Script editor, Run. Every
 * detection counts as a nucleus, and every annotation without objects of its own, whose centre lies in the rectangle;
 * one of several parts as several nuclei. Then train: curl -X POST http://127.0.0.1:8000/train/ama_sam
 */

import static qupath.lib.scripting.QP.*

import groovy.json.JsonOutput
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import javax.imageio.ImageIO
import qupath.lib.regions.RegionRequest

// --- what to change

def address = "http://127.0.0.1:8000"  // of the server, started by `ama-sam serve STUDIES`
def token = ""                         // its AMA_SAM_TOKEN, if it has one

// ---

def region = getSelectedObject()
if (region == null || !region.isAnnotation())
    throw new IllegalStateException("Select the annotation around the corrected nuclei first")
def roi = region.getROI()
def image = getCurrentServer()
def request = RegionRequest.createInstance(image.getPath(), 1.0, roi)
// what is learned from is the whole box around the annotation: nuclei beside it would be learned as background
def (x, y, width, height) = [request.getX(), request.getY(), request.getWidth(), request.getHeight()]
if (roi.getArea() < 0.99 * width * height)
    throw new IllegalStateException("The annotation is no rectangle; draw one, in which all nuclei are corrected")

def hierarchy = getCurrentHierarchy()
def drawn = hierarchy.getAnnotationObjects().findAll { it != region && !it.hasChildObjects() }
// of QuPath's own cells the nucleus
def shapes = (hierarchy.getDetectionObjects() + drawn).collect {
    it.isCell() && it.getNucleusROI() != null ? it.getNucleusROI() : it.getROI()
}
def outlines = []
shapes.findAll { it.isArea() && roi.contains(it.getCentroidX(), it.getCentroidY()) }.each { shape ->
    def geometry = shape.getGeometry()
    for (i in 0..<geometry.getNumGeometries())
        outlines << geometry.getGeometryN(i).getExteriorRing().getCoordinates().toList().dropRight(1)
}

def xml = new StringBuilder('<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>\n')
outlines.eachWithIndex { outline, n ->
    xml << '<Annotation Name="' + (n + 1) + '" PartOfGroup="nuclei" Type="Polygon"><Coordinates>'
    outline.eachWithIndex { point, i ->
        xml << '<Coordinate Order="' + i + '" X="' + (point.x - x) + '" Y="' + (point.y - y) + '"/>'
    }
    xml << '</Coordinates></Annotation>\n'
}
xml << '</Annotations></ASAP_Annotations>\n'

def stem = image.getMetadata().getName().replaceAll("[^A-Za-z0-9_-]+", "_").replaceAll("^_+", "")
def name = [stem, x, y, width, height].join("_")
def png = new ByteArrayOutputStream()
ImageIO.write(image.readRegion(request), "PNG", png)
def mpp = image.getPixelCalibration().getAveragedPixelSizeMicrons()  // NaN where the slide does not say
def about = JsonOutput.toJson(mpp > 0 ? [mpp: mpp] : [:])
put(address + "/datastore/image?image=" + name, token, about, "file", name + ".png", png.toByteArray())
put(address + "/datastore/label?image=" + name, token, "{}", "label", name + ".xml", xml.toString().getBytes("UTF-8"))
println(outlines.size() + " nuclei of " + name + " sent")

/** Stores a file; an exception with the server's sentence if it refuses. */
def put(String url, String token, String params, String field, String name, byte[] content) {
    def line = UUID.randomUUID().toString()
    def start = "--$line\r\nContent-Disposition: form-data; name="
    def body = new ByteArrayOutputStream()
    body.write((start + "\"params\"\r\n\r\n" + params + "\r\n").getBytes("UTF-8"))
    body.write((start + "\"$field\"; filename=\"$name\"\r\n\r\n").getBytes("UTF-8"))
    body.write(content)
    body.write("\r\n--$line--\r\n".getBytes("UTF-8"))
    def asked = HttpRequest.newBuilder(URI.create(url))
        .header("Content-Type", "multipart/form-data; boundary=" + line)
        .PUT(HttpRequest.BodyPublishers.ofByteArray(body.toByteArray()))
    if (token)
        asked.header("Authorization", "Bearer " + token)
    def answer = HttpClient.newHttpClient().send(asked.build(), HttpResponse.BodyHandlers.ofString())
    if (answer.statusCode() != 200)
        throw new IOException("The server refuses (" + answer.statusCode() + "): " + answer.body())
}
